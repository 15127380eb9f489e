//! Any bytes where files of a repository should be: read or refused, without a panic, without an escape, and
//! in memory that what they claim does not decide. The same entry points as the fuzz targets in `tests/fuzz`.
#![allow(clippy::unwrap_used, clippy::indexing_slicing)]

#[path = "support/entry_points.rs"]
mod entry_points;
#[path = "support/tarball.rs"]
mod tarball;

use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::Once;

use proptest::prelude::*;
use rustix::process::{Resource, Rlimit, getrlimit, setrlimit};
use tarball::Tarball;

/// Address space for the whole test program, stacks and all.
const MEMORY_LIMIT_BYTES: u64 = 3 << 30;

/// Whoever believes a claim of gigabytes aborts the program.
fn bound_memory() {
    static ONCE: Once = Once::new();
    ONCE.call_once(|| {
        let Rlimit { maximum, .. } = getrlimit(Resource::As);
        let current = Some(MEMORY_LIMIT_BYTES);
        setrlimit(Resource::As, Rlimit { current, maximum }).unwrap();
    });
}

/// The most memory this process ever had resident, in bytes.
fn peak_bytes() -> u64 {
    let status = fs::read_to_string("/proc/self/status").unwrap();
    let line = status
        .lines()
        .find(|line| line.starts_with("VmHWM:"))
        .unwrap();
    let kilobytes: u64 = line.split_whitespace().nth(1).unwrap().parse().unwrap();
    kilobytes * 1024
}

fn bytes() -> impl Strategy<Value = Vec<u8>> {
    proptest::collection::vec(any::<u8>(), 0..400)
}

/// Lines that look like those of the repository's text files.
fn lines() -> impl Strategy<Value = String> {
    let number = prop_oneof![
        Just("0".to_owned()),
        Just(u64::MAX.to_string()),
        Just("-1".to_owned()),
        (0u64..1 << 50).prop_map(|n| n.to_string()),
    ];
    let name = prop_oneof![
        Just("ab".repeat(32)),
        Just("AB".repeat(32)),
        Just("zz".to_owned())
    ];
    let line = prop_oneof![
        (name.clone(), number.clone(), number.clone()).prop_map(|(p, a, b)| format!("{p} {a} {b}")),
        (number.clone(), number.clone(), name.clone(), number.clone())
            .prop_map(|(a, b, p, c)| format!("{a} {b} {p} {c}")),
        (name, number).prop_map(|(p, a)| format!("{p} {a}")),
    ];
    let heading = prop_oneof![
        Just("# lifeboat ranges 1 depth 0"),
        Just("# lifeboat ranges 1 depth 4294967295"),
        Just("# lifeboat packs 1"),
        Just("# lifeboat moved 1"),
        Just("# lifeboat moves 1"),
    ];
    (heading, proptest::collection::vec(line, 0..8))
        .prop_map(|(heading, lines)| format!("{heading}\n{}\n", lines.join("\n")))
}

/// A manifest with fields of the right kinds and any values.
fn manifests() -> impl Strategy<Value = String> {
    (
        prop_oneof![Just(1u32), any::<u32>()],
        "[a-z0-9./-]{0,12}",
        any::<u64>(),
        prop_oneof![Just(entry_points::repository_id()), "[0-9a-f]{0,64}"],
        prop_oneof![Just("1970-01-01T00:00:00Z"), Just("9999-12-31T00:00:00Z"), Just("x")],
    )
        .prop_map(|(format, name, number, digest, time)| {
            format!(
                r#"{{"format":{format},"id":"20260101T000000Z-000001","repository":"{digest}","parent":{{"id":"{name}","manifest_sha256":"{digest}"}},
                "program_version":"0","host":"h","project":null,"started":"{time}","finished":"{time}","skew_ms":{number},
                "archives":[{{"name":"{name}","kind":"volume","container":null,"point":{{"at":"{time}","coordinate":null}},
                "report":{{"version":"1","counts":{{}},"facts":null,"warnings":[]}},"raw_bytes":{number},"read_bytes":0,"stored_bytes":0,"ranges_sha256":"{digest}"}}],
                "raw_bytes":{number},"read_bytes":{number},"stored_bytes":{number}}}"#
            )
        })
}

/// A pack's end that claims whatever it likes.
fn pack_ends() -> impl Strategy<Value = Vec<u8>> {
    let entry = (any::<u32>(), any::<u32>());
    let small = (0u32..64, 0u32..64);
    (
        bytes(),
        proptest::collection::vec(prop_oneof![entry, small], 0..6),
        prop_oneof![Just(None), any::<u32>().prop_map(Some)],
        any::<bool>(),
    )
        .prop_map(|(mut pack, entries, count, fits)| {
            let mut entries = entries;
            if fits {
                // Lengths that fill the file: what comes after that check is reached.
                let length = u32::try_from(pack.len()).unwrap();
                entries = vec![(length / 2, 4096), (length - length / 2, 0)];
            }
            pack.extend_from_slice(&0x184D_2A5E_u32.to_le_bytes());
            pack.extend_from_slice(&u32::try_from(entries.len() * 8 + 9).unwrap().to_le_bytes());
            for (stored, raw) in &entries {
                pack.extend_from_slice(&stored.to_le_bytes());
                pack.extend_from_slice(&raw.to_le_bytes());
            }
            let count = count.unwrap_or(u32::try_from(entries.len()).unwrap());
            pack.extend_from_slice(&count.to_le_bytes());
            pack.push(0);
            pack.extend_from_slice(&0x8F92_EAB1_u32.to_le_bytes());
            pack
        })
}

/// A block table that claims counts.
fn tables() -> impl Strategy<Value = Vec<u8>> {
    (1u8..4, any::<u32>(), any::<u32>(), bytes()).prop_map(|(kind, first, second, rest)| {
        let mut table = b"LBT1".to_vec();
        table.push(kind);
        table.extend_from_slice(&first.to_le_bytes());
        table.extend_from_slice(&second.to_le_bytes());
        table.extend_from_slice(&rest);
        table
    })
}

/// Headers with names, sizes and kinds from all over, some of them with a right checksum.
fn tars() -> impl Strategy<Value = Vec<u8>> {
    let name = prop_oneof![
        Just("../x".to_owned()),
        Just("/etc/x".to_owned()),
        Just("a/../../x".to_owned()),
        Just("link/x".to_owned()),
        "[a-z/.]{0,20}",
    ];
    let entry = (name, "[a-z/.]{0,20}", 0u8..4, bytes(), any::<(u16, u8)>());
    proptest::collection::vec(entry, 0..5).prop_map(|entries| {
        let mut tar = Tarball::new();
        let mut damage = Vec::new();
        for (name, to, kind, body, harm) in entries {
            tar = match kind {
                0 => tar.directory(&name),
                1 => tar.symlink("link", &to),
                2 => tar.hard_link(&name, &to),
                _ => tar.file(&name, &body),
            };
            damage.push(harm);
        }
        let mut tar = tar.end();
        for (at, with) in damage.into_iter().step_by(2) {
            let at = usize::from(at) % tar.len();
            tar[at] ^= with;
        }
        tar
    })
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 512, failure_persistence: None, ..ProptestConfig::default() })]

    #[test]
    fn any_config_is_read_or_refused(text in prop_oneof![bytes(), manifests().prop_map(String::into_bytes)]) {
        bound_memory();
        entry_points::config(&text);
    }

    #[test]
    fn any_manifest_is_read_or_refused(text in prop_oneof![bytes(), manifests().prop_map(String::into_bytes)]) {
        bound_memory();
        entry_points::manifest(&text);
    }

    #[test]
    fn any_text_file_is_read_or_refused(text in prop_oneof![bytes(), lines().prop_map(String::into_bytes)]) {
        bound_memory();
        entry_points::text(&text);
    }

    #[test]
    fn any_pack_is_read_or_refused(pack in prop_oneof![bytes(), pack_ends()]) {
        bound_memory();
        entry_points::pack(&pack);
    }

    #[test]
    fn any_block_table_is_read_or_refused(table in prop_oneof![bytes(), tables()]) {
        bound_memory();
        entry_points::table(&table);
    }

    #[test]
    fn any_part_of_the_index_is_read_or_refused(part in prop_oneof![bytes(), tables()]) {
        bound_memory();
        entry_points::index_part(&part);
        // The same as the table of a pack that the part names.
        let mut named = vec![1; 32];
        named.extend_from_slice(&u32::try_from(part.len()).unwrap().to_le_bytes());
        named.extend_from_slice(&part);
        entry_points::index_part(&named);
    }

    #[test]
    fn no_tar_stream_leaves_its_target(tar in prop_oneof![bytes(), tars()]) {
        bound_memory();
        let dir = tempfile::tempdir().unwrap();
        let target = dir.path().join("target");
        fs::create_dir(&target).unwrap();
        fs::write(dir.path().join("kept"), "kept").unwrap();
        entry_points::tar(&tar, &target);
        let mut beside: Vec<_> = fs::read_dir(dir.path())
            .unwrap()
            .map(|entry| entry.unwrap().file_name())
            .collect();
        beside.sort();
        prop_assert_eq!(beside, ["kept", "target"]);
        prop_assert_eq!(fs::read(dir.path().join("kept")).unwrap(), b"kept");
    }
}

/// What is good gets through, so that the bytes above reach what lies behind.
#[test]
fn good_files_get_through_the_entry_points() {
    let dir = tempfile::tempdir().unwrap();
    let archive = concat!(
        env!("CARGO_MANIFEST_DIR"),
        "/tests/fixtures/repository-1/plain.tar.zst"
    );
    let status = Command::new("tar")
        .args(["--zstd", "-xf", archive, "-C"])
        .arg(dir.path())
        .status()
        .unwrap();
    assert!(status.success());
    let repo = dir.path().join("repo");
    assert!(entry_points::config(
        &fs::read(repo.join("config.json")).unwrap()
    ));
    let (mut packs, mut parts, mut texts) = (0, 0, 0);
    for path in files_below(&repo) {
        let (name, bytes) = (path.to_str().unwrap(), fs::read(&path).unwrap());
        if path.extension().is_some_and(|end| end == "zst") {
            assert!(entry_points::pack(&bytes), "{name}");
            let mut cut = bytes.clone();
            cut.truncate(bytes.len() - 1);
            assert!(!entry_points::pack(&cut), "{name}");
            packs += 1;
        } else if name.contains("/index/") {
            // Without the seal, which is put on anew.
            assert!(
                entry_points::index_part(&bytes[..bytes.len() - 40]),
                "{name}"
            );
            parts += 1;
        } else if name.ends_with(".ranges") {
            assert!(entry_points::text(&bytes), "{name}");
            texts += 1;
        }
    }
    assert!(
        packs > 2 && parts > 1 && texts == 4,
        "{packs} {parts} {texts}"
    );
    let target = dir.path().join("target");
    fs::create_dir(&target).unwrap();
    assert!(entry_points::tar(
        &Tarball::new().file("a", b"x").end(),
        &target
    ));
    assert!(entry_points::table(
        b"LBT1\x01\x00\x02\x00\x00\x01\x00\x00\x0012345678"
    ));
}

fn files_below(dir: &Path) -> Vec<PathBuf> {
    let mut found = Vec::new();
    for entry in fs::read_dir(dir).unwrap() {
        let entry = entry.unwrap();
        if entry.file_type().unwrap().is_dir() {
            found.extend(files_below(&entry.path()));
        } else {
            found.push(entry.path());
        }
    }
    found
}

/// Claims of the largest counts and sizes that a field holds cost no memory.
#[test]
fn claims_of_gigabytes_cost_no_memory() {
    bound_memory();
    let before = peak_bytes();
    for count in [u32::MAX, 1 << 24, (1 << 24) - 1] {
        for kind in [1u8, 2] {
            let mut table = b"LBT1".to_vec();
            table.push(kind);
            table.extend_from_slice(&count.to_le_bytes());
            table.extend_from_slice(&count.to_le_bytes());
            entry_points::table(&table);
            entry_points::index_part(&table);
        }
        let mut part = vec![1; 32];
        part.extend_from_slice(&count.to_le_bytes());
        entry_points::index_part(&part);
        let mut pack = 0x184D_2A5E_u32.to_le_bytes().to_vec();
        pack.extend_from_slice(&count.to_le_bytes());
        pack.extend_from_slice(&count.to_le_bytes());
        pack.extend_from_slice(&count.to_le_bytes());
        pack.extend_from_slice(&count.to_le_bytes());
        pack.push(0);
        pack.extend_from_slice(&0x8F92_EAB1_u32.to_le_bytes());
        entry_points::pack(&pack);
    }
    // A zstd frame's header that claims 2^40 bytes and a window of 2 GiB.
    for descriptor in [0xC0u8, 0xE0] {
        let mut frame = vec![0x28, 0xB5, 0x2F, 0xFD, descriptor, 0xA8];
        frame.extend_from_slice(&(1u64 << 40).to_le_bytes());
        entry_points::index_part(&frame);
    }
    let grown = peak_bytes() - before;
    assert!(grown < 256 << 20, "{} MB more", grown >> 20);
}
