//! Lifeboat backs up a running compose stack of n8n, PostgreSQL, Ollama and Qdrant, and gets it back.
//!
//! # The flow
//!
//! ```text
//! backup:   config → stack (discover) → services (hold, copy, freeze, drain, release)
//!                  → archive (one tar stream a service) → repository (blocks → frames → packs → manifest)
//! restore:  manifest → restore::plan → preflight → journal, stop → write beside, swap → start in order
//!                  → health → done, or roll back
//! import:   tars and directories → import (stage, detect) → services, without their servers → repository
//! ```
//!
//! # Invariants
//!
//! 1. A backup exists when its manifest does; then every byte it names is in the store and was decoded
//!    once before it was published ([`repository`]).
//! 2. What a run stops, creates or leaves in a service is journalled first and undone at the next start,
//!    even after `kill -9` ([`stack::journal`]).
//! 3. A restore destroys nothing before the past stands complete beside it ([`restore`]).
//! 4. Nothing that fails is called a success: no manifest, a non-zero exit, an unhealthy container.
//! 5. Retention counts good backups only and keeps the newest one whatever the policy says ([`retention`]).
//! 6. Memory does not grow with the data; nothing is staged whole.
//! 7. Secrets are never logged; their type prints `***` ([`config::Secret`]).
//! 8. Unknown input is data: bounded, checked, refused with a sentence.

// In reading order.
pub mod archive;
pub mod cli;
pub mod commands;
pub mod config;
pub mod durable;
pub mod import;
pub mod priority;
pub mod repository;
pub mod restore;
pub mod retention;
pub mod schedule;
pub mod services;
pub mod stack;
