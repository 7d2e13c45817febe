//! What the gateway takes from itself: cores, ptrace, new rights. It holds data keys and PANs.

use std::panic;

use anyhow::Context;
use rustix::process::{DumpableBehavior, Resource, Rlimit, set_dumpable_behavior, setrlimit};
use rustix::thread::set_no_new_privs;

/// Core dumps off, not dumpable, no new rights, and panics that print their place only.
///
/// # Errors
/// What the kernel refused.
pub fn harden() -> anyhow::Result<()> {
    panic::set_hook(Box::new(|info| {
        let place = info.location().map(ToString::to_string).unwrap_or_default();
        tracing::error!(place, "panic");
    }));
    setrlimit(Resource::Core, Rlimit { current: Some(0), maximum: Some(0) })
        .context("switching core dumps off")?;
    set_dumpable_behavior(DumpableBehavior::NotDumpable).context("becoming not dumpable")?;
    set_no_new_privs(true).context("giving up new rights")?;
    Ok(())
}
