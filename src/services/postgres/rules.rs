//! What of a data directory a backup leaves out: pure decisions by name.
//!
//! The lists are those of the server's own base backup (`src/backend/backup/basebackup.c`:
//! `excludeDirContents`, `excludeFiles`; and "Making a Base Backup Using the Low Level API" in its manual).

/// Directories at the root that are kept, empty: what is in them belongs to the running server, or (`pg_wal`)
/// is written by its own rules.
const CONTENTS_DROPPED: [&str; 8] = [
    "pg_dynshmem",
    "pg_notify",
    "pg_replslot",
    "pg_serial",
    "pg_snapshots",
    "pg_stat_tmp",
    "pg_subtrans",
    "pg_wal",
];

/// Files at the root that belong to the running server, to another backup, or are written anew.
const ROOT_FILES: [&str; 12] = [
    "backup_label",
    "backup_label.old",
    "backup_manifest",
    "backup_manifest.tmp",
    "current_logfiles.tmp",
    "postgresql.auto.conf.tmp",
    "postmaster.opts",
    "postmaster.pid",
    "recovery.signal",
    "standby.signal",
    "tablespace_map",
    "tablespace_map.old",
];

/// How this program's own names begin: staging and kept directories, uncommitted files.
const OWN_PREFIX: &str = ".lifeboat";

/// Whether the directory of this relative name is kept without its contents.
pub fn contents_dropped(name: &str) -> bool {
    CONTENTS_DROPPED.contains(&name)
}

/// What a copy of a data directory need not keep, by the name relative to it.
///
/// Less than [`excluded`] and [`contents_dropped`] leave out: nothing is written anew for such a copy, so its
/// WAL, its backup label and its unlogged relations, which a clean shutdown keeps, belong to it.
pub fn dropped_of_copy(name: &str) -> bool {
    let (directory, file) = name.rsplit_once('/').unwrap_or(("", name));
    let kept = matches!(
        name,
        "backup_label" | "tablespace_map" | "global/pg_control"
    );
    let root = name.split('/').next().unwrap_or_default();
    let emptied = root != name && root != "pg_wal" && contents_dropped(root);
    emptied
        || (excluded(directory, file) && !kept)
        || (holds_relations(directory) && relation_file(file).is_some_and(|r| r.temporary))
}

/// Whether an entry is left out, by the relative name of its directory (empty at the root) and its own.
pub fn excluded(directory: &str, file: &str) -> bool {
    if file.starts_with("pgsql_tmp") || is_relcache_init(file) || file.starts_with(OWN_PREFIX) {
        return true;
    }
    match directory {
        "" => ROOT_FILES.contains(&file),
        // The protocol: read last, by `freeze`.
        "global" => file == "pg_control",
        _ => false,
    }
}

/// `pg_internal.init`, or one that its writer has not renamed yet (`pg_internal.init.<pid>`).
fn is_relcache_init(file: &str) -> bool {
    file.strip_prefix("pg_internal.init")
        .is_some_and(|rest| rest.is_empty() || rest.strip_prefix('.').is_some_and(all_digits))
}

/// Whether a directory holds relation files: `global`, `base/N`, `pg_tblspc/N/PG_*/N`.
pub fn holds_relations(directory: &str) -> bool {
    let parts: Vec<&str> = directory.split('/').collect();
    match parts.as_slice() {
        ["global"] => true,
        ["base", database] => all_digits(database),
        ["pg_tblspc", oid, version, database] => {
            all_digits(oid) && version.starts_with("PG_") && all_digits(database)
        }
        _ => false,
    }
}

/// The name of a relation's file, taken apart.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct RelationFile<'a> {
    /// Its relfilenode, with `t<backend>_` before it when the relation is temporary.
    pub node: &'a str,
    pub temporary: bool,
    /// The fork that an unlogged relation is reset from.
    pub init_fork: bool,
}

/// Takes a name apart by `parse_filename_for_nontemp_relation` and `looks_like_temp_rel_name`; `None` when
/// it is not a relation's.
pub fn relation_file(file: &str) -> Option<RelationFile<'_>> {
    // `.N` numbers the 1 GB segments after the first.
    let whole = match file.split_once('.') {
        Some((whole, segment)) if all_digits(segment) => whole,
        Some(_) => return None,
        None => file,
    };
    let (node, init_fork) = if let Some(node) = whole.strip_suffix("_init") {
        (node, true)
    } else {
        let node = whole
            .strip_suffix("_fsm")
            .or_else(|| whole.strip_suffix("_vm"))
            .unwrap_or(whole);
        (node, false)
    };
    let temporary = match node.strip_prefix('t') {
        Some(rest) => {
            let (backend, relation) = rest.split_once('_')?;
            if !all_digits(backend) || !all_digits(relation) || init_fork {
                return None;
            }
            true
        }
        None if all_digits(node) => false,
        None => return None,
    };
    Some(RelationFile {
        node,
        temporary,
        init_fork,
    })
}

pub fn all_digits(text: &str) -> bool {
    !text.is_empty() && text.bytes().all(|b| b.is_ascii_digit())
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, clippy::indexing_slicing)]

    use super::*;

    #[test]
    fn the_running_servers_own_files_are_left_out() {
        for file in ROOT_FILES {
            assert!(excluded("", file), "{file}");
            assert!(!excluded("base/5", file), "{file}");
        }
        for (directory, file) in [
            ("base/pgsql_tmp", "pgsql_tmp123.0"),
            ("base", "pgsql_tmp"),
            ("pg_tblspc/1/PG_15_202209061", "pgsql_tmp"),
            ("global", "pg_internal.init"),
            ("base/5", "pg_internal.init.4711"),
            ("global", "pg_control"),
            ("", ".lifeboat-staging"),
            ("global", ".lifeboat-tmp-x1"),
        ] {
            assert!(excluded(directory, file), "{directory}/{file}");
        }
        for (directory, file) in [
            ("", "PG_VERSION"),
            ("", "postgresql.auto.conf"),
            ("", "current_logfiles"),
            ("", "pg_control"),
            ("base/5", "pg_control"),
            ("base/5", "pg_internal.initial"),
            ("global", "pg_filenode.map"),
            ("pg_logical", "replorigin_checkpoint"),
        ] {
            assert!(!excluded(directory, file), "{directory}/{file}");
        }
    }

    #[test]
    fn a_copy_keeps_its_wal_its_label_and_its_unlogged_relations() {
        for kept in [
            "backup_label",
            "global/pg_control",
            "pg_wal",
            "pg_wal/000000010000000000000001",
            "pg_wal/archive_status/000000010000000000000001.done",
            "pg_replslot",
            "base/5/16384",
            "base/5/16384_init",
            "base/5/t_16384",
            "postgresql.auto.conf",
        ] {
            assert!(!dropped_of_copy(kept), "{kept}");
        }
        for dropped in [
            "postmaster.pid",
            "postmaster.opts",
            "recovery.signal",
            "backup_label.old",
            "pg_replslot/lost/state",
            "pg_stat_tmp/global.stat",
            "base/pgsql_tmp",
            "base/5/pg_internal.init",
            "base/5/t3_16384",
        ] {
            assert!(dropped_of_copy(dropped), "{dropped}");
        }
    }

    #[test]
    fn emptied_directories_are_those_at_the_root_only() {
        assert!(contents_dropped("pg_wal"));
        assert!(contents_dropped("pg_replslot"));
        assert!(!contents_dropped("base/pg_wal"));
        assert!(!contents_dropped("pg_twophase"));
        assert!(!contents_dropped("pg_xact"));
    }

    #[test]
    fn relations_live_in_three_places() {
        for yes in ["global", "base/5", "pg_tblspc/16384/PG_15_202209061/5"] {
            assert!(holds_relations(yes), "{yes}");
        }
        for no in [
            "",
            "base",
            "base/x",
            "base/5/6",
            "pg_xact",
            "pg_tblspc/16384",
            "pg_tblspc/16384/PG_15_202209061",
            "pg_tblspc/16384/other/5",
        ] {
            assert!(!holds_relations(no), "{no}");
        }
    }

    #[test]
    fn relation_names_are_taken_apart() {
        let name = |file| relation_file(file).map(|r| (r.node, r.temporary, r.init_fork));
        assert_eq!(name("16384"), Some(("16384", false, false)));
        assert_eq!(name("16384.12"), Some(("16384", false, false)));
        assert_eq!(name("16384_fsm"), Some(("16384", false, false)));
        assert_eq!(name("16384_vm.1"), Some(("16384", false, false)));
        assert_eq!(name("16384_init"), Some(("16384", false, true)));
        assert_eq!(name("t3_16384"), Some(("t3_16384", true, false)));
        assert_eq!(name("t3_16384_fsm.2"), Some(("t3_16384", true, false)));
        for other in [
            "PG_VERSION",
            "pg_filenode.map",
            "16384.x",
            "16384.",
            "16384_other",
            "16384.1.2",
            "t_16384",
            "t3_",
            "t3_16384_init",
            "_init",
            "",
        ] {
            assert_eq!(name(other), None, "{other}");
        }
    }
}
