//! What the gateway takes from itself: cores, ptrace, new rights. It holds data keys and PANs.

use anyhow::Context;
use rustix::process::{DumpableBehavior, Resource, Rlimit, set_dumpable_behavior, setrlimit};
use rustix::thread::set_no_new_privs;

/// Core dumps off, not dumpable, no new rights.
///
/// # Errors
/// What the kernel refused.
pub fn harden() -> anyhow::Result<()> {
    setrlimit(Resource::Core, Rlimit { current: Some(0), maximum: Some(0) })
        .context("switching core dumps off")?;
    set_dumpable_behavior(DumpableBehavior::NotDumpable).context("becoming not dumpable")?;
    set_no_new_privs(true).context("giving up new rights")?;
    Ok(())
}
