//! Exercises a running compose stack through its services' own interfaces, and keeps the truth.
//!
//! ```text
//! seed ─▶ state file: accounts, ids, digests, aliases   ─┐
//! write ─▶ ledger: one line per acknowledged write       ├─▶ compare (after a restore)
//! probe ─▶ report: failed requests, longest latency      │
//! destroy, change: what happens to the data in between  ─┘
//! ```
//!
//! Nothing here shares code with Lifeboat: a fault in the library must not also hide in its judge.

pub mod change;
pub mod compare;
pub mod destroy;
pub mod digest;
pub mod gguf;
pub mod ledger;
pub mod n8n;
pub mod ollama;
pub mod postgres;
pub mod probe;
pub mod qdrant;
pub mod seed;
pub mod stack;
pub mod state;
pub mod table;
pub mod web;
pub mod write;
