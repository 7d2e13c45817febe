//! Holds the shape of the house: what each room may import, what each package may depend on, and the
//! habits that every file keeps. Reads text; compiles nothing.
//!
//! A checker takes text and answers with what is wrong in it, so that each has two tests: the
//! repository is clean, and a small bad sample is not.
#![forbid(unsafe_code)]
#![cfg(test)]

#[path = "tidy/files.rs"]
mod files; // the repository's files
#[path = "tidy/code.rs"]
mod code; // Rust text without comments, literals and tests; the paths in it
#[path = "tidy/rooms.rs"]
mod rooms; // what each room of the gateway may import
#[path = "tidy/packages.rs"]
mod packages; // what each package may depend on, and what nobody may
#[path = "tidy/habits.rs"]
mod habits; // unsafe, sizes, leftovers, metric names
#[path = "tidy/reference.rs"]
mod reference; // gateway.toml says everything, and says it right
#[path = "tidy/repository.rs"]
mod repository; // what is under version control, and what the pages promise
#[path = "tidy/controls.rs"]
mod controls; // requirements name modules, tests, records and evidence that exist
