//! A program of ours that runs beside: started with a log, ended by its own id.

use std::ffi::OsStr;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, ExitStatus, Stdio};

use anyhow::Context as _;
use rustix::process::{Pid, Signal, kill_process};

/// A child process; dropping it kills it.
#[derive(Debug)]
pub struct Process {
    child: Child,
    log: PathBuf,
}

impl Process {
    /// Starts a program of this workspace; both outputs go to `log`, which grows over restarts.
    ///
    /// # Errors
    /// When it is not built.
    pub fn start(name: &str, arguments: &[&OsStr], log: &Path) -> anyhow::Result<Self> {
        Self::start_under(&[], name, arguments, log)
    }

    /// The same through a program that becomes it, with arguments of its own: `env`.
    ///
    /// # Errors
    /// When it is not built.
    pub fn start_under(
        wrapper: &[&str],
        name: &str,
        arguments: &[&OsStr],
        log: &Path,
    ) -> anyhow::Result<Self> {
        let file = std::fs::OpenOptions::new().create(true).append(true).open(log)?;
        let path = program(name)?;
        let mut words = wrapper.iter().map(OsStr::new).chain([path.as_os_str()]);
        let child = Command::new(words.next().context("no program")?)
            .args(words)
            .args(arguments)
            .stdin(Stdio::null())
            .stdout(file.try_clone()?)
            .stderr(file)
            .spawn()
            .with_context(|| format!("starting {name}"))?;
        Ok(Self { child, log: log.to_owned() })
    }

    /// Its id.
    #[must_use]
    pub fn id(&self) -> u32 {
        self.child.id()
    }

    /// The ids of its children.
    #[must_use]
    pub fn children(&self) -> Vec<u32> {
        children(self.id())
    }

    /// How it ended, when it has.
    ///
    /// # Errors
    /// The system's.
    pub fn ended(&mut self) -> anyhow::Result<Option<ExitStatus>> {
        Ok(self.child.try_wait()?)
    }

    /// SIGTERM.
    ///
    /// # Errors
    /// When it has gone.
    pub fn terminate(&self) -> anyhow::Result<()> {
        signal(self.id(), Signal::TERM)
    }

    /// The end of its log, for a failing test's message.
    #[must_use]
    pub fn last_lines(&self) -> String {
        let text = std::fs::read_to_string(&self.log).unwrap_or_default();
        let lines: Vec<&str> = text.lines().collect();
        lines[lines.len().saturating_sub(12)..].join("\n")
    }
}

impl Drop for Process {
    fn drop(&mut self) {
        // Errors say that it has ended already.
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

/// The ids of a process's children.
#[must_use]
pub fn children(id: u32) -> Vec<u32> {
    let tasks = std::fs::read_dir(format!("/proc/{id}/task"));
    let mut children = Vec::new();
    for task in tasks.into_iter().flatten().flatten() {
        let text = std::fs::read_to_string(task.path().join("children")).unwrap_or_default();
        children.extend(text.split_whitespace().filter_map(|id| id.parse::<u32>().ok()));
    }
    children
}

/// Sends a signal to a process that a world started.
///
/// # Errors
/// When it has gone.
pub fn signal(id: u32, signal: Signal) -> anyhow::Result<()> {
    let pid = i32::try_from(id).ok().and_then(Pid::from_raw).context("no process id")?;
    kill_process(pid, signal).with_context(|| format!("signalling {id}"))
}

/// The path of a program of this workspace: beside this one, or one folder up (test binaries).
///
/// # Errors
/// When it is not built.
pub fn program(name: &str) -> anyhow::Result<PathBuf> {
    let this = std::env::current_exe()?;
    this.ancestors()
        .skip(1)
        .take(2)
        .map(|dir| dir.join(name))
        .find(|path| path.is_file())
        .with_context(|| format!("{name} is not built: run `cargo build --workspace` first"))
}
