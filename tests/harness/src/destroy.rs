//! Destroys the services' data while they run, as an accident would.

use std::path::Path;
use std::time::Duration;

use anyhow::{Context, Result, bail, ensure};
use clap::ValueEnum;

use crate::qdrant::Qdrant;
use crate::stack::{Container, Mount, Service, Stack, docker};

/// Where the stack keeps its data.
#[derive(Clone, Copy, PartialEq, Eq, ValueEnum)]
pub enum Layout {
    /// In directories of this machine
    Bind,
    /// In Docker's named volumes
    Volumes,
}

/// Destroys the data of the given services and says what is gone.
pub fn run(stack: &Stack, services: &[Service], layout: Layout) -> Result<Vec<String>> {
    let mut lines = Vec::new();
    let mut targets = Vec::new();
    for service in services {
        let container = stack.container(*service)?;
        targets.push((
            *service,
            container,
            data_mount(container, *service, layout)?,
        ));
    }
    for (service, container, mount) in targets {
        if service == Service::Qdrant {
            lines.push(drop_collections(stack)?);
        }
        let gone = match layout {
            Layout::Bind => empty_directory(&mount, &container.working_dir)?,
            Layout::Volumes => empty_volume(container, &mount)?,
        };
        lines.push(format!("{service}: {gone}"));
    }
    Ok(lines)
}

/// Finds the mount with the service's data; refuses one that is not of the named layout.
fn data_mount(container: &Container, service: Service, layout: Layout) -> Result<Mount> {
    let kind = match layout {
        Layout::Bind => "bind",
        Layout::Volumes => "volume",
    };
    let mount = service
        .data_dirs()
        .iter()
        .find_map(|dir| {
            container
                .mounts
                .iter()
                .find(|mount| mount.destination == *dir)
        })
        .with_context(|| {
            format!(
                "{service} has no mount at {}",
                service.data_dirs().join(", ")
            )
        })?;
    ensure!(
        mount.kind == kind,
        "{service} keeps its data on a {} mount, not on a {kind}; is --layout right?",
        mount.kind
    );
    Ok(mount.clone())
}

fn drop_collections(stack: &Stack) -> Result<String> {
    let qdrant = Qdrant::new(stack, Duration::from_mins(1))?;
    let names = qdrant.collection_names()?;
    for name in &names {
        qdrant.drop_collection(name)?;
    }
    Ok(format!("qdrant: dropped collections {}", names.join(", ")))
}

/// Empties a bind mount's directory, which must lie inside the project's own.
fn empty_directory(mount: &Mount, project: &str) -> Result<String> {
    let project = std::fs::canonicalize(project)
        .with_context(|| format!("find the project directory {project:?}"))?;
    let directory = std::fs::canonicalize(&mount.source)
        .with_context(|| format!("find the data directory {:?}", mount.source))?;
    if directory == project || !directory.starts_with(&project) {
        bail!(
            "{} does not lie inside the project directory {}; nothing there is deleted",
            directory.display(),
            project.display()
        );
    }
    let mut entries = 0_u64;
    for entry in std::fs::read_dir(&directory)? {
        entries += 1;
        remove(&entry?.path())?;
    }
    Ok(format!(
        "deleted {entries} entries of {}",
        directory.display()
    ))
}

/// A running server may delete or add files at the same time; what it deleted is gone as well.
fn remove(path: &Path) -> Result<()> {
    for _ in 0..20 {
        let removed = match std::fs::symlink_metadata(path) {
            Ok(found) if found.is_dir() => std::fs::remove_dir_all(path),
            Ok(_) => std::fs::remove_file(path),
            Err(error) => Err(error),
        };
        match removed {
            Ok(()) => return Ok(()),
            Err(error) if error.kind() == std::io::ErrorKind::NotFound => {
                if !path.exists() {
                    return Ok(());
                }
            }
            Err(error) if error.kind() == std::io::ErrorKind::DirectoryNotEmpty => {}
            Err(error) => {
                return Err(error).with_context(|| format!("delete {}", path.display()));
            }
        }
    }
    bail!(
        "{} filled up again while it was being deleted",
        path.display()
    )
}

/// Empties a volume from a helper container, which does not care whether the service survives it.
fn empty_volume(container: &Container, mount: &Mount) -> Result<String> {
    let dir = mount.destination.as_str();
    let mut last = None;
    // The server may write into a directory that is just being deleted.
    for _ in 0..20 {
        let emptied = docker(&[
            "run",
            "--rm",
            "--user=0",
            "--network=none",
            "--entrypoint=find",
            &format!("--volumes-from={}", container.id),
            &container.image,
            dir,
            "-mindepth",
            "1",
            "-delete",
        ]);
        match emptied {
            Ok(_) => return Ok(format!("deleted all of {dir} (volume {})", mount.name)),
            Err(error) => last = Some(error),
        }
    }
    Err(last.context("no attempt was made")?).with_context(|| format!("empty {dir}"))
}
