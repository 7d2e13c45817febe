//! What the process takes from itself before it touches a key: cores, ptrace, swap, new rights.

use std::panic;

use rustix::mm::{MlockAllFlags, mlockall};
use rustix::process::{
    DumpableBehavior, Resource, Rlimit, Signal, set_dumpable_behavior,
    set_parent_process_death_signal, setrlimit,
};
use rustix::thread::set_no_new_privs;

/// Core dumps off, not dumpable (so no ptrace by other users and no `/proc/<pid>/mem`), memory
/// locked, no new rights, dead when the gateway dies, and panics that print their place only.
///
/// # Errors
/// When memory cannot be locked and the machine swaps: a clear PIN could reach a disk.
pub(crate) fn harden() -> Result<(), HardeningError> {
    panic::set_hook(Box::new(|info| {
        let place = info.location().map(ToString::to_string).unwrap_or_default();
        eprintln!("{{\"level\":\"ERROR\",\"message\":\"panic\",\"place\":\"{place}\"}}");
    }));
    setrlimit(Resource::Core, Rlimit { current: Some(0), maximum: Some(0) })
        .map_err(|source| HardeningError::Refused { what: "core dumps off", source })?;
    set_dumpable_behavior(DumpableBehavior::NotDumpable)
        .map_err(|source| HardeningError::Refused { what: "not dumpable", source })?;
    set_no_new_privs(true)
        .map_err(|source| HardeningError::Refused { what: "no new rights", source })?;
    set_parent_process_death_signal(Some(Signal::KILL))
        .map_err(|source| HardeningError::Refused { what: "death with the gateway", source })?;
    // On fault: pages that are never touched need not be resident.
    let flags = MlockAllFlags::CURRENT | MlockAllFlags::FUTURE | MlockAllFlags::ONFAULT;
    if let Err(source) = mlockall(flags) {
        if swap_is_on() {
            return Err(HardeningError::Swap { source });
        }
        tracing::warn!(error = %source, "memory is not locked; this machine has no swap");
    }
    Ok(())
}

/// The first line of `/proc/swaps` is a heading. Unknown counts as on.
fn swap_is_on() -> bool {
    std::fs::read_to_string("/proc/swaps").map_or(true, |swaps| swaps.lines().count() > 1)
}

/// Why the process is not fit to hold a clear PIN.
#[derive(Debug, thiserror::Error)]
pub enum HardeningError {
    #[error("hardening: {what}")]
    Refused {
        what: &'static str,
        #[source]
        source: rustix::io::Errno,
    },
    #[error("memory cannot be locked and swap is on: raise RLIMIT_MEMLOCK or switch swap off")]
    Swap {
        #[source]
        source: rustix::io::Errno,
    },
}
