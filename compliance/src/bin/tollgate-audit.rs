//! `tollgate-audit`: verifies a log or an evidence pack, proves one record of a log, and takes a range out of
//! it. Offline: it reads files and asks nobody.
//!
//! Ends with 0 intact, 1 tampered, 2 incomplete, 3 when it could not judge.
#![forbid(unsafe_code)]

use std::fs::File;
use std::io::{self, BufWriter, IsTerminal as _, Write};
use std::path::{Path, PathBuf};
use std::process::ExitCode;

use anyhow::{Context as _, bail};
use clap::{Parser, Subcommand};
use compliance::export::Format;
use compliance::{Options, ProveError, Verdict, VerifierKey, read_anchors};
use jiff::Timestamp;
use uuid::Uuid;

/// Verifies the audit trail of Tollgate from its files alone.
///
/// Exit status: 0 intact, 1 tampered, 2 incomplete, 3 not judged (usage, unreadable files).
#[derive(Debug, Parser)]
#[command(version)]
struct Arguments {
    #[command(subcommand)]
    command: Command,
}

#[derive(Debug, Subcommand)]
enum Command {
    /// Says whether a log or an evidence pack is as it was written.
    Verify {
        /// A replica's directory, a directory of exports, an export, a segment, or a proof; an evidence
        /// pack, or its manifest.json.
        path: PathBuf,
        /// A key whose signatures count, or a file with one a line. May be given several times.
        #[arg(long, value_name = "KEY")]
        vkey: Vec<String>,
        /// Notes that someone else has kept: `audit.checkpoint` records, notes in base64, or one note.
        #[arg(long, value_name = "FILE")]
        anchors: Vec<PathBuf>,
        /// The first record to judge, of one stream.
        #[arg(long, value_name = "SEQ")]
        from: Option<u64>,
        /// The last record to judge, of one stream.
        #[arg(long, value_name = "SEQ")]
        to: Option<u64>,
        /// Prints one JSON object.
        #[arg(long)]
        json: bool,
    },
    /// Writes the proof of one record, for someone who has nothing of the log.
    Prove {
        /// A replica's directory, an export, or a segment.
        path: PathBuf,
        /// The event's id.
        #[arg(long, value_name = "ID")]
        event: Uuid,
        /// A key whose signatures count, or a file with one a line. May be given several times.
        #[arg(long, value_name = "KEY")]
        vkey: Vec<String>,
        /// A file that is not there yet; otherwise standard output.
        #[arg(long, value_name = "FILE")]
        out: Option<PathBuf>,
    },
    /// Takes a range out of a replica's log.
    Export {
        /// The replica's directory.
        dir: PathBuf,
        /// jsonl, which alone verifies, or a projection of it: syslog, cef, leef, ocsf.
        #[arg(long, default_value = "jsonl")]
        format: Format,
        /// The first time, RFC 3339.
        #[arg(long, value_name = "TIME")]
        from: Option<Timestamp>,
        /// The last time, RFC 3339.
        #[arg(long, value_name = "TIME")]
        to: Option<Timestamp>,
        /// A file that is not there yet; otherwise standard output.
        #[arg(long, value_name = "FILE")]
        out: Option<PathBuf>,
    },
}

fn main() -> ExitCode {
    let arguments = match Arguments::try_parse() {
        Ok(arguments) => arguments,
        Err(error) => {
            // What cannot be printed cannot be told either.
            let _ = error.print();
            return ExitCode::from(if error.use_stderr() { NOT_JUDGED } else { 0 });
        }
    };
    match run(arguments.command) {
        Ok(code) => ExitCode::from(code),
        Err(error) => {
            eprintln!("tollgate-audit: {error:#}");
            ExitCode::from(NOT_JUDGED)
        }
    }
}

fn run(command: Command) -> anyhow::Result<u8> {
    match command {
        Command::Verify { path, vkey, anchors, from, to, json } => {
            if let Some(pack) = compliance::pack_at(&path) {
                if !anchors.is_empty() || from.is_some() || to.is_some() {
                    bail!(
                        "{} is an evidence pack: it has no records and no anchors",
                        path.display()
                    );
                }
                let report = compliance::verify_pack(&pack, &keys(&vkey)?)?;
                let text = if json { serde_json::to_string(&report)? } else { report.to_string() };
                writeln!(io::stdout(), "{text}")?;
                return Ok(report.verdict.exit_code());
            }
            let mut notes = Vec::new();
            for file in anchors {
                let read = read_anchors(&file);
                notes.extend(read.with_context(|| format!("anchors {}", file.display()))?);
            }
            let range = range(from, to)?;
            let mut show = |records: u64| eprint!("\r{records} records");
            let shown: Option<&mut dyn FnMut(u64)> =
                if io::stderr().is_terminal() { Some(&mut show) } else { None };
            let options = Options { keys: keys(&vkey)?, anchors: notes, range, progress: shown };
            let report = compliance::verify(&path, options)?;
            if io::stderr().is_terminal() {
                eprint!("\r\x1b[K");
            }
            let text = if json { serde_json::to_string(&report)? } else { report.to_string() };
            writeln!(io::stdout(), "{text}")?;
            Ok(report.verdict.exit_code())
        }
        Command::Prove { path, event, vkey, out } => {
            match compliance::prove(&path, event, &keys(&vkey)?) {
                Ok(proof) => {
                    let mut out = output(out.as_deref())?;
                    out.write_all(proof.as_bytes())?;
                    out.flush()?;
                    Ok(0)
                }
                Err(error @ (ProveError::Unsigned | ProveError::Tampered { .. })) => {
                    let is_unsigned = matches!(error, ProveError::Unsigned);
                    let verdict = if is_unsigned { Verdict::Incomplete } else { Verdict::Tampered };
                    eprintln!("tollgate-audit: {:#}", anyhow::Error::from(error));
                    Ok(verdict.exit_code())
                }
                Err(error) => Err(error.into()),
            }
        }
        Command::Export { dir, format, from, to, out } => {
            let mut out = output(out.as_deref())?;
            let summary = compliance::write_set(&dir, format, from, to, &mut out)?;
            out.flush()?;
            eprintln!("{} records of {} streams", summary.records, summary.streams.len());
            if !summary.is_covered {
                eprintln!("no signed checkpoint covers the last of them so far");
            }
            Ok(0)
        }
    }
}

fn range(from: Option<u64>, to: Option<u64>) -> anyhow::Result<Option<(u64, u64)>> {
    if from.is_none() && to.is_none() {
        return Ok(None);
    }
    let Some(to) = to else { bail!("--from needs --to") };
    let from = from.unwrap_or(1);
    if from == 0 || from > to {
        bail!("--from and --to are numbers of records, from 1, the first before the last");
    }
    Ok(Some((from, to)))
}

fn keys(given: &[String]) -> anyhow::Result<Vec<VerifierKey>> {
    let mut keys = Vec::new();
    for one in given {
        if let Ok(key) = one.parse() {
            keys.push(key);
            continue;
        }
        let text = std::fs::read_to_string(one)
            .with_context(|| format!("{one} is no key, and no file with keys"))?;
        for line in text.lines().filter(|line| !line.trim().is_empty()) {
            let key = line.trim().parse::<VerifierKey>();
            keys.push(key.with_context(|| format!("a key in {one}"))?);
        }
    }
    if keys.is_empty() && !given.is_empty() {
        bail!("no key in what --vkey names");
    }
    Ok(keys)
}

fn output(path: Option<&Path>) -> anyhow::Result<Box<dyn Write>> {
    Ok(match path {
        Some(path) => {
            let file =
                File::create_new(path).with_context(|| format!("writing {}", path.display()))?;
            Box::new(BufWriter::new(file))
        }
        None => Box::new(BufWriter::new(io::stdout().lock())),
    })
}

const NOT_JUDGED: u8 = 3;
