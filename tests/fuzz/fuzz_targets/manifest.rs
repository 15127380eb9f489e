#![no_main]

#[allow(dead_code)]
#[path = "../../support/entry_points.rs"]
mod entry_points;

libfuzzer_sys::fuzz_target!(|bytes: &[u8]| {
    let _believed = entry_points::manifest(bytes);
});
