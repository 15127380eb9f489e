//! Which container this process runs in.

use std::path::Path;

use super::DiscoverError;
use crate::stack::engine::{Engine, EngineErrorKind};
use bollard::models::ContainerInspectResponse;

/// The sidecar's own container, confirmed by the engine; `None` when this process is in none of its containers.
pub(super) async fn find(
    engine: &Engine,
) -> Result<Option<ContainerInspectResponse>, DiscoverError> {
    let read = |path: &str| std::fs::read_to_string(Path::new(path)).unwrap_or_default();
    let uname = rustix::system::uname();
    let candidates = candidates(
        &read("/proc/self/mountinfo"),
        &read("/proc/self/cgroup"),
        &uname.nodename().to_string_lossy(),
    );
    for id in candidates {
        match engine.inspect(&id).await {
            // A name could match too, and another container's: only an id is proof.
            Ok(found) if found.id.as_ref().is_some_and(|full| full.starts_with(&id)) => {
                return Ok(Some(found));
            }
            Ok(_) => {}
            Err(err) if err.kind == EngineErrorKind::NoSuchContainer => {}
            Err(err) => return Err(err.into()),
        }
    }
    Ok(None)
}

/// Ids this process may have, surest first.
///
/// The engine mounts `…/containers/<id>/hostname` (Podman `…/overlay-containers/<id>/userdata/hostname`)
/// over `/etc/hostname`; cgroup v1 names the container in the path; the default host name is its short id.
fn candidates(mountinfo: &str, cgroup: &str, hostname: &str) -> Vec<String> {
    let mut found = Vec::new();
    for line in mountinfo.lines() {
        // proc_pid_mountinfo(5): id, parent, device, root, mount point, …
        let mut fields = line.split(' ').skip(3);
        let (Some(root), Some(point)) = (fields.next(), fields.next()) else {
            continue;
        };
        if matches!(point, "/etc/hostname" | "/etc/hosts" | "/etc/resolv.conf") {
            found.extend(root.split('/').filter(|p| p.len() == 64).map(str::to_owned));
        }
    }
    for line in cgroup.lines() {
        // `12:memory:/docker/<id>`, `/system.slice/docker-<id>.scope`, `/docker/<id>/init`
        found.extend(
            line.split(|c: char| !c.is_ascii_alphanumeric())
                .filter(|part| part.len() == 64)
                .map(str::to_owned),
        );
    }
    found.push(hostname.to_owned());
    found.retain(|id| {
        matches!(id.len(), 12 | 64) && id.bytes().all(|b| matches!(b, b'0'..=b'9' | b'a'..=b'f'))
    });
    let mut seen = std::collections::BTreeSet::new();
    found.retain(|id| seen.insert(id.clone()));
    found
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_mounted_host_name_tells_the_container() {
        let (id, other) = ("ab".repeat(32), "cd".repeat(32));
        let mountinfo = format!(
            "500 400 0:50 / / rw - overlay overlay rw,lowerdir=/var/lib/docker/overlay2/l/X\n\
             501 500 254:1 /var/lib/docker/containers/{id}/resolv.conf /etc/resolv.conf rw - ext4 /dev/vda1 rw\n\
             502 500 254:1 /var/lib/docker/containers/{id}/hostname /etc/hostname rw - ext4 /dev/vda1 rw\n\
             503 500 254:1 /var/lib/docker/containers/{other}/hostname /data/x rw - ext4 /dev/vda1 rw\n"
        );
        assert_eq!(candidates(&mountinfo, "0::/", "lifeboat"), [id]);
    }

    #[test]
    fn rootless_and_podman_paths_are_known() {
        let id = "0123456789abcdef".repeat(4);
        for root in [
            format!("/home/u/.local/share/docker/containers/{id}/hostname"),
            format!("/containers/storage/overlay-containers/{id}/userdata/hostname"),
            format!("/containers/{id}/hostname"),
        ] {
            let line = format!("1 2 0:1 {root} /etc/hostname rw - ext4 /dev/vda1 rw");
            let found = candidates(&line, "", "h");
            assert!(found.contains(&id), "{root}: {found:?}");
        }
    }

    #[test]
    fn cgroups_and_the_default_host_name_are_the_fallbacks() {
        let id = "0a".repeat(32);
        for cgroup in [
            format!("12:memory:/docker/{id}\n"),
            format!("0::/system.slice/docker-{id}.scope\n"),
        ] {
            assert_eq!(candidates("", &cgroup, "web"), std::slice::from_ref(&id));
        }
        assert_eq!(candidates("", "0::/", "0a0a0a0a0a0a"), ["0a0a0a0a0a0a"]);
        assert_eq!(candidates("", "0::/", "workstation1"), [""; 0]);
    }
}
