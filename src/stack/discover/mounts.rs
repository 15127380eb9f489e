//! Which directory of the sidecar is which directory of a sibling: by volume name or by bind source.
//!
//! No path of the host is ever opened: sources are compared, and only the sidecar's own targets are used.

use std::path::{Path, PathBuf};

use crate::stack::{SharedMount, joined};

/// A volume or a bind in one container.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Mount {
    pub target: PathBuf,
    /// The volume's name; `None` for a bind.
    pub volume: Option<String>,
    /// The path on the engine's host.
    pub source: Option<PathBuf>,
    /// The volume's subpath that is mounted, empty for all of it.
    pub inside: PathBuf,
    pub read_only: bool,
}

/// Where the two trees meet.
enum Meeting {
    /// The sibling's directory is the sidecar's, or this path below it.
    Below(PathBuf),
    /// The sidecar sees only this path below the sibling's directory.
    Above(PathBuf),
}

/// The sidecar's view of a sibling's mount, through the sidecar's mount that fits closest.
pub(super) fn share(own: &[Mount], sibling: &Mount) -> Vec<SharedMount> {
    let mut below: Vec<(usize, SharedMount)> = Vec::new();
    let mut above: Vec<SharedMount> = Vec::new();
    for mount in own {
        match meet(mount, sibling) {
            Some(Meeting::Below(rest)) => {
                let local = joined(&mount.target, &rest);
                if !is_hidden(own, mount, &local) {
                    let shared = SharedMount {
                        target: sibling.target.clone(),
                        local,
                        read_only: mount.read_only,
                    };
                    below.push((rest.components().count(), shared));
                }
            }
            Some(Meeting::Above(rest)) => above.push(SharedMount {
                target: joined(&sibling.target, &rest),
                local: mount.target.clone(),
                read_only: mount.read_only,
            }),
            None => {}
        }
    }
    // The closest first; a writable one before a read-only one.
    below.sort_by_key(|(depth, shared)| (*depth, shared.read_only));
    match below.into_iter().next() {
        // The whole of it is seen: parts of it add nothing.
        Some((_, shared)) => vec![shared],
        None => above,
    }
}

/// Whether two mounts show the same files or one of them a part of the other's.
pub(super) fn overlap(a: &Mount, b: &Mount) -> bool {
    meet(a, b).is_some()
}

fn meet(own: &Mount, sibling: &Mount) -> Option<Meeting> {
    let (own_path, sibling_path) = match (&own.volume, &sibling.volume) {
        (Some(a), Some(b)) if a == b => (own.inside.clone(), sibling.inside.clone()),
        (Some(_), Some(_)) => return None,
        // A bind of a volume's directory on the host, or two binds.
        _ => (on_host(own)?, on_host(sibling)?),
    };
    if let Ok(rest) = sibling_path.strip_prefix(&own_path) {
        return Some(Meeting::Below(rest.to_owned()));
    }
    own_path
        .strip_prefix(&sibling_path)
        .ok()
        .map(|rest| Meeting::Above(rest.to_owned()))
}

fn on_host(mount: &Mount) -> Option<PathBuf> {
    let source = mount.source.as_ref()?;
    // A bind of the whole host would "contain" every sibling's directory.
    (source != Path::new("/")).then(|| joined(source, &mount.inside))
}

/// Whether another of the sidecar's mounts lies over the path.
fn is_hidden(own: &[Mount], through: &Mount, local: &Path) -> bool {
    own.iter().any(|other| {
        other.target != through.target
            && other.target.starts_with(&through.target)
            && local.starts_with(&other.target)
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn bind(source: &str, target: &str) -> Mount {
        Mount {
            target: target.into(),
            volume: None,
            source: Some(source.into()),
            inside: PathBuf::new(),
            read_only: false,
        }
    }

    fn volume(name: &str, inside: &str, target: &str) -> Mount {
        Mount {
            target: target.into(),
            volume: Some(name.into()),
            source: Some(format!("/var/lib/docker/volumes/{name}/_data").into()),
            inside: inside.into(),
            read_only: false,
        }
    }

    fn shown(own: &[Mount], sibling: &Mount) -> Vec<(String, String)> {
        share(own, sibling)
            .into_iter()
            .map(|m| {
                (
                    m.target.display().to_string(),
                    m.local.display().to_string(),
                )
            })
            .collect()
    }

    fn one(target: &str, local: &str) -> Vec<(String, String)> {
        vec![(target.to_owned(), local.to_owned())]
    }

    #[test]
    fn the_same_volume_or_directory_is_shared() {
        let own = [
            volume("k_n8n", "", "/data/n8n"),
            bind("/srv/pg", "/data/pg"),
        ];
        let n8n = volume("k_n8n", "", "/home/node/.n8n");
        assert_eq!(shown(&own, &n8n), one("/home/node/.n8n", "/data/n8n"));
        let pg = bind("/srv/pg/", "/var/lib/postgresql/data");
        assert_eq!(
            shown(&own, &pg),
            one("/var/lib/postgresql/data", "/data/pg")
        );
        assert_eq!(shown(&own, &volume("other", "", "/x")), []);
        assert_eq!(shown(&own, &bind("/srv/pg2", "/x")), []);
    }

    #[test]
    fn a_directory_below_the_sidecars_is_found_in_it() {
        let own = [bind("/srv/data", "/data")];
        let pg = bind("/srv/data/postgres", "/var/lib/postgresql/data");
        assert_eq!(
            shown(&own, &pg),
            one("/var/lib/postgresql/data", "/data/postgres")
        );
    }

    #[test]
    fn a_directory_above_the_sidecars_is_shared_in_part() {
        let own = [
            bind("/srv/app/uploads", "/data/uploads"),
            bind("/srv/app/keys", "/data/keys"),
        ];
        let app = bind("/srv/app", "/app");
        assert_eq!(
            shown(&own, &app),
            [
                ("/app/uploads".into(), "/data/uploads".into()),
                ("/app/keys".into(), "/data/keys".into())
            ]
        );
    }

    #[test]
    fn parts_of_volumes_are_told_apart() {
        let own = [volume("all", "", "/data")];
        assert_eq!(
            shown(&own, &volume("all", "pg", "/pg")),
            one("/pg", "/data/pg")
        );
        let own = [volume("all", "pg", "/data/pg")];
        assert_eq!(
            shown(&own, &volume("all", "pg", "/pg")),
            one("/pg", "/data/pg")
        );
        assert_eq!(shown(&own, &volume("all", "n8n", "/n8n")), []);
        assert_eq!(
            shown(&own, &volume("all", "", "/v")),
            one("/v/pg", "/data/pg")
        );
    }

    #[test]
    fn the_closest_mount_wins_and_a_hidden_directory_is_not_used() {
        let own = [bind("/srv", "/project"), bind("/srv/data/pg", "/data/pg")];
        let pg = bind("/srv/data/pg", "/pg");
        assert_eq!(shown(&own, &pg), one("/pg", "/data/pg"));
        // Over /data/pg lies another volume: the bind's own "pg" is out of sight.
        let own = [bind("/srv/data", "/data"), volume("pg", "", "/data/pg")];
        assert_eq!(shown(&own, &pg), []);
        assert_eq!(
            shown(&own, &volume("pg", "", "/pg")),
            one("/pg", "/data/pg")
        );
    }

    #[test]
    fn a_writable_view_is_preferred_and_the_hosts_root_is_none() {
        let mut read_only = bind("/srv/pg", "/a");
        read_only.read_only = true;
        let own = [read_only, bind("/srv/pg", "/b"), bind("/", "/host")];
        assert_eq!(shown(&own, &bind("/srv/pg", "/pg")), one("/pg", "/b"));
        assert_eq!(shown(&own, &bind("/srv/x", "/x")), []);
    }

    #[test]
    fn a_bind_of_a_volumes_directory_is_that_volume() {
        let own = [bind("/var/lib/docker/volumes/pg/_data", "/data/pg")];
        assert_eq!(
            shown(&own, &volume("pg", "", "/pg")),
            one("/pg", "/data/pg")
        );
    }
}
