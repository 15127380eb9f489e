//! Streams that are damaged or forged: refused with a sentence, and nothing outside the target changes.

use std::fs;
use std::os::unix::fs::MetadataExt;
use std::path::Path;

use lifeboat::archive::unpack::{HEADER_LIMIT, UnpackError, UnpackOptions, unpack};
use tokio::io::AsyncReadExt;

use crate::Place;
use crate::tarball::{Fields, Tarball};

#[tokio::test]
async fn hostile_names_are_refused() {
    for name in [
        "../outside/kept",
        "/etc/lifeboat-test",
        "a/../../outside/new",
        "..",
        "a//b",
        "a/./b",
        "a/",
    ] {
        let sentence = Place::new()
            .refused(&Tarball::new().file(name, b"x").end())
            .await;
        assert!(sentence.contains("damaged or forged"), "{sentence}");
    }
    let empty = Tarball::new().raw(b"", &Fields::new(b'0'), b"").end();
    assert!(Place::new().refused(&empty).await.contains("empty"));
    let nul = Tarball::new()
        .pax(&[("path", b"a\0b")])
        .file("x", b"")
        .end();
    assert!(Place::new().refused(&nul).await.contains("NUL"));
    for directory in ["../", "/", "a/../b/"] {
        Place::new()
            .refused(&Tarball::new().directory(directory).end())
            .await;
    }
}

#[tokio::test]
async fn nothing_is_written_through_a_symlink() {
    for to in ["../outside", "/tmp", "."] {
        let place = Place::new();
        let tar = Tarball::new()
            .symlink("link", to)
            .file("link/new", b"x")
            .end();
        let sentence = place.refused(&tar).await;
        assert!(sentence.contains("twice"), "{sentence}");
    }
    let place = Place::new();
    let tar = Tarball::new()
        .symlink("link", "../outside/kept")
        .file("link", b"x")
        .end();
    place.refused(&tar).await;
    // A link that leads out is put back as it was: nothing follows it.
    let place = Place::new();
    place
        .unpack(&Tarball::new().symlink("link", "../outside").end())
        .await
        .unwrap();
    assert_eq!(
        fs::read_link(place.target().join("link")).unwrap(),
        Path::new("../outside")
    );
}

#[tokio::test]
async fn hard_links_lead_only_to_files_unpacked_before() {
    let place = Place::new();
    let cases = [
        Tarball::new().hard_link("a", "../outside/kept"),
        Tarball::new().hard_link("a", "/etc/passwd"),
        Tarball::new().hard_link("a", "later").file("later", b""),
        Tarball::new().directory("d/").hard_link("a", "d"),
        Tarball::new()
            .symlink("s", "../outside/kept")
            .hard_link("a", "s"),
        Tarball::new()
            .symlink("s", "../outside")
            .hard_link("a", "s/kept"),
        Tarball::new().hard_link("a", "a"),
    ];
    for tar in cases {
        Place::new().refused(&tar.end()).await;
    }
    let outside = fs::metadata(place.dir.path().join("outside/kept")).unwrap();
    assert_eq!(outside.nlink(), 1);
}

#[tokio::test]
async fn what_no_backup_holds_is_refused() {
    for (kind, word) in [
        (b'3', "device"),
        (b'4', "device"),
        (b'6', "pipe"),
        (b'g', "global"),
        (b'V', "unknown"),
        (b'7', "unknown"),
    ] {
        let tar = Tarball::new().raw(b"x", &Fields::new(kind), b"").end();
        let sentence = Place::new().refused(&tar).await;
        assert!(sentence.contains(word), "{sentence}");
    }
    let sparse = Tarball::new()
        .pax(&[("GNU.sparse.map", b"0,1"), ("GNU.sparse.size", b"1")])
        .file("f", b"x")
        .end();
    assert!(Place::new().refused(&sparse).await.contains("sparse"));
    let body = Fields {
        size: 4,
        ..Fields::new(b'5')
    };
    Place::new()
        .refused(&Tarball::new().raw(b"d/", &body, b"body").end())
        .await;
    let nobody = Fields {
        uid: u32::MAX >> 11,
        ..Fields::new(b'0')
    };
    let owner = Tarball::new()
        .pax(&[("uid", b"4294967295")])
        .raw(b"f", &nobody, b"")
        .end();
    assert!(Place::new().refused(&owner).await.contains("owner"));
}

#[tokio::test]
async fn a_name_twice_is_refused() {
    for tar in [
        Tarball::new().file("a", b"1").file("a", b"2"),
        Tarball::new().file("a", b"1").file("./a", b"2"),
        Tarball::new().directory("a/").directory("a/"),
        Tarball::new().directory("./").directory("."),
        Tarball::new().file("a", b"1").directory("a/"),
        Tarball::new().directory("a/").file("a", b"1"),
        Tarball::new().file("a", b"1").symlink("a", "b"),
        Tarball::new()
            .file("a", b"1")
            .file("b", b"2")
            .hard_link("b", "a"),
    ] {
        let sentence = Place::new().refused(&tar.end()).await;
        assert!(sentence.contains("twice"), "{sentence}");
    }
    let tar = Tarball::new().file("a", b"1").file("a/b", b"2").end();
    let sentence = Place::new().refused(&tar).await;
    assert!(sentence.contains("not a directory"), "{sentence}");
}

#[tokio::test]
async fn a_damaged_stream_is_an_error_wherever_it_is_cut() {
    let whole = Tarball::new()
        .directory("d/")
        .file("d/f", &[5; 3000])
        .pax(&[("mtime", b"1.5")])
        .symlink("l", "d");
    let complete = whole.clone().end();
    for length in (0..complete.len() - 1024 + 511).step_by(171) {
        let error = Place::new().unpack(&complete[..length]).await.unwrap_err();
        assert!(
            matches!(error, UnpackError::Archive(_)),
            "{length}: {error}"
        );
    }
    // Between two entries nothing but the missing end mark tells.
    Place::new().unpack(&whole.clone().cut()).await.unwrap_err();
    Place::new().unpack(&complete).await.unwrap();

    let mut flipped = complete.clone();
    flipped[3] ^= 1;
    Place::new().unpack(&flipped).await.unwrap_err();
    let mut trailing = complete.clone();
    trailing.extend_from_slice(&Tarball::new().file("hidden", b"x").end());
    let error = Place::new().unpack(&trailing).await.unwrap_err();
    assert!(error.to_string().contains("follows"), "{error}");
}

#[tokio::test]
async fn a_claimed_size_reserves_nothing() {
    let liar = Fields {
        size: 0o77_777_777_777,
        ..Fields::new(b'0')
    };
    let place = Place::new();
    let tar = Tarball::new().raw(b"huge", &liar, b"short").cut();
    let error = place.unpack(&tar).await.unwrap_err();
    assert!(matches!(error, UnpackError::Archive(_)), "{error}");
    assert!(fs::metadata(place.target().join("huge")).unwrap().blocks() * 512 < 64 * 1024);
}

#[tokio::test]
async fn headers_are_bounded() {
    let limit = usize::try_from(HEADER_LIMIT).unwrap();
    let value = vec![b'v'; limit];
    let pax = Tarball::new()
        .pax(&[("SCHILY.xattr.user.huge", &value)])
        .file("f", b"")
        .end();
    let long = Fields {
        size: HEADER_LIMIT,
        ..Fields::new(b'L')
    };
    let long = Tarball::new()
        .raw(b"name", &long, &value)
        .file("f", b"")
        .end();
    for tar in [pax, long] {
        let error = Place::new().unpack(&tar).await.unwrap_err();
        assert!(error.to_string().contains("headers take more"), "{error}");
    }
    // An endless one, which would fill the memory.
    let endless = Fields {
        size: 0o77_777_777_777,
        ..Fields::new(b'x')
    };
    let start = Tarball::new().raw(b"p", &endless, b"").cut();
    let stream = std::io::Cursor::new(start).chain(tokio::io::repeat(b'1'));
    let place = Place::new();
    let error = unpack(stream, &place.target(), &UnpackOptions::default())
        .await
        .unwrap_err();
    assert!(error.to_string().contains("headers take more"), "{error}");
}
