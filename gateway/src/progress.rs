//! How far something has come, for who waits at a terminal: a bar that is drawn over itself. Elsewhere
//! a line for each change.

use std::io::{IsTerminal, Write};

/// A bar of a known length.
#[derive(Debug)]
pub(crate) struct Progress {
    total: u64,
    is_terminal: bool,
    last: String,
}

impl Progress {
    /// `total` is what there is to do.
    pub(crate) fn new(total: u64) -> Self {
        Self { total, is_terminal: std::io::stderr().is_terminal(), last: String::new() }
    }

    /// What there was to do.
    pub(crate) fn total(&self) -> u64 {
        self.total
    }

    /// So much of it is done; `what` in words.
    pub(crate) fn show(&mut self, done: u64, what: &str) {
        let line = self.line(done, what);
        if line == self.last {
            return;
        }
        let mut stderr = std::io::stderr().lock();
        // Whoever reads has gone: the work goes on.
        let _ = match self.is_terminal {
            true => write!(stderr, "\r\u{1b}[2K{line}").and_then(|()| stderr.flush()),
            false => writeln!(stderr, "{line}"),
        };
        self.last = line;
    }

    fn line(&self, done: u64, what: &str) -> String {
        let what: String = what.chars().map(|c| if c.is_control() { ' ' } else { c }).collect();
        if !self.is_terminal {
            return what;
        }
        let share = if self.total == 0 { 1.0 } else { done as f64 / self.total as f64 };
        let filled = (share * WIDTH as f64) as usize;
        format!("[{:<WIDTH$}] {what}", "#".repeat(filled.min(WIDTH)))
    }
}

impl Drop for Progress {
    fn drop(&mut self) {
        if self.is_terminal && !self.last.is_empty() {
            eprintln!();
        }
    }
}

/// Characters of the bar.
const WIDTH: usize = 30;

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_bar_fills_up_and_a_file_gets_words_alone() {
        let of = |total, is_terminal| Progress { total, is_terminal, last: String::new() };

        let half = of(10, true).line(5, "5 left");
        let full = of(0, true).line(0, "0 left");
        let file = of(10, false).line(5, "5\u{1b}left");

        assert_eq!(half, format!("[{}{}] 5 left", "#".repeat(15), " ".repeat(15)));
        assert_eq!(full, format!("[{}] 0 left", "#".repeat(30)));
        assert_eq!(file, "5 left");
    }
}
