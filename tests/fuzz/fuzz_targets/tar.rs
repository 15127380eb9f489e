#![no_main]

#[allow(dead_code)]
#[path = "../../support/entry_points.rs"]
mod entry_points;

libfuzzer_sys::fuzz_target!(|bytes: &[u8]| {
    let dir = tempfile::tempdir().expect("a directory for scratch");
    let target = dir.path().join("target");
    std::fs::create_dir(&target).expect("a target");
    let _believed = entry_points::tar(bytes, &target);
    let beside = std::fs::read_dir(dir.path())
        .expect("the directory")
        .count();
    assert_eq!(beside, 1, "something landed beside the target");
});
