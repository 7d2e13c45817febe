//! CPU time as the operating system counts it.

use anyhow::Context as _;
use harness::world::children;

/// User + system seconds of a process and its children that run now, by what the threads do.
#[derive(Debug, Clone, Copy, Default)]
pub(crate) struct Cpu {
    /// The gateway's runtime: TLS, HTTP, authorisation, the hop.
    pub(crate) gateway: f64,
    /// The audit log's writer: records, syncs.
    pub(crate) audit: f64,
    /// The HSM workers.
    pub(crate) workers: f64,
}

impl Cpu {
    pub(crate) fn of(id: u32) -> anyhow::Result<Self> {
        let mut cpu = Self::default();
        for process in std::iter::once(id).chain(children(id)) {
            for task in std::fs::read_dir(format!("/proc/{process}/task"))? {
                let stat = std::fs::read_to_string(task?.path().join("stat"))?;
                let (name, seconds) = parse(&stat)?;
                let part = match (process == id, name.ends_with("(audit-writer")) {
                    (true, true) => &mut cpu.audit,
                    (true, false) => &mut cpu.gateway,
                    (false, _) => &mut cpu.workers,
                };
                *part += seconds;
            }
        }
        Ok(cpu)
    }

    /// User + system seconds of one process.
    pub(crate) fn of_process(id: u32) -> anyhow::Result<f64> {
        Ok(parse(&std::fs::read_to_string(format!("/proc/{id}/stat"))?)?.1)
    }

    pub(crate) fn total(&self) -> f64 {
        self.gateway + self.audit + self.workers
    }

    /// Microseconds an operation since `before`.
    pub(crate) fn per_operation(&self, before: &Self, operations: u64) -> Self {
        let each = |now: f64, then: f64| (now - then) * 1e6 / operations as f64;
        Self {
            gateway: each(self.gateway, before.gateway),
            audit: each(self.audit, before.audit),
            workers: each(self.workers, before.workers),
        }
    }
}

/// The name and the CPU seconds in a `stat` of /proc.
fn parse(stat: &str) -> anyhow::Result<(&str, f64)> {
    // The second field, the thread's name, may hold anything: count from its end.
    let (name, rest) = stat.rsplit_once(')').context("/proc stat")?;
    let fields: Vec<&str> = rest.split_whitespace().collect();
    let mut ticks = 0.0;
    for at in [11, 12] {
        ticks += fields.get(at).context("/proc stat")?.parse::<f64>()?;
    }
    Ok((name, ticks / rustix::param::clock_ticks_per_second() as f64))
}
