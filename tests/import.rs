//! Backups that were made by tar and cp, taken in and got back: real clusters, databases and trees.
#![allow(clippy::unwrap_used, clippy::indexing_slicing)]

#[allow(dead_code)]
#[path = "postgres/cluster.rs"]
mod cluster;
#[allow(dead_code)]
#[path = "adapters/n8n.rs"]
mod home;
#[path = "adapters/place.rs"]
mod place;
#[path = "support/program.rs"]
mod program;
#[path = "support/tarball.rs"]
mod tarball;

#[path = "import/clusters.rs"]
mod clusters;
#[path = "import/housekeeping.rs"]
mod housekeeping;
#[path = "import/n8n.rs"]
mod n8n;
#[path = "import/qdrant.rs"]
mod qdrant;
#[path = "import/refusals.rs"]
mod refusals;
#[path = "import/whole.rs"]
mod whole;
#[path = "import/world.rs"]
mod world;
