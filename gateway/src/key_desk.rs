//! `tollgate keys`: the key officer's commands, through the admin API of a running gateway.

use std::path::{Path, PathBuf};

use anyhow::{Context, bail, ensure};
use clap::{Args, Subcommand};
use hsm_adapter::register::{KeyRegister, KeyState};
use serde_json::{Value, json};

use crate::operator::{Access, AdminClient};

/// `tollgate keys ...`
#[derive(Debug, Subcommand)]
#[expect(missing_docs, reason = "flattened fields have no help of their own")]
pub enum KeyCommand {
    /// Every key version: state, role, check value.
    List {
        #[command(flatten)]
        talk: Talk,
    },
    /// The latest changes, those that wait for a second officer among them.
    Changes {
        #[command(flatten)]
        talk: Talk,
    },
    /// Proposes to import a key from a key block, staged.
    Import {
        /// A file with one `[[key]]` as in keys.toml: label, version, role, algorithm, kcv, ...
        #[arg(long)]
        profile: PathBuf,
        /// A file with the TR-31 / X9.143 key block.
        #[arg(long)]
        block_file: PathBuf,
        /// The key block protection key: `label` or `label@version`.
        #[arg(long)]
        under: String,
        /// Why.
        #[arg(long)]
        reason: String,
        #[command(flatten)]
        talk: Talk,
    },
    /// Proposes to put a staged version to use; the one that was active retires.
    Activate {
        #[command(flatten)]
        version: Version,
        /// How long the version that retires still verifies and deciphers. Seconds.
        #[arg(long)]
        overlap_s: Option<u32>,
        #[command(flatten)]
        talk: Talk,
    },
    /// Proposes to retire the active version.
    Retire {
        #[command(flatten)]
        version: Version,
        /// How long it still verifies and deciphers. Seconds; no end when absent.
        #[arg(long)]
        overlap_s: Option<u32>,
        #[command(flatten)]
        talk: Talk,
    },
    /// Takes a version out of all use, at once and without a second officer.
    Compromise {
        #[command(flatten)]
        version: Version,
        #[command(flatten)]
        talk: Talk,
    },
    /// Approves another officer's change, which is then made.
    Approve {
        #[command(flatten)]
        decision: DecisionOn,
        #[command(flatten)]
        talk: Talk,
    },
    /// Refuses another officer's change.
    Refuse {
        #[command(flatten)]
        decision: DecisionOn,
        #[command(flatten)]
        talk: Talk,
    },
    /// Takes back an own change.
    Withdraw {
        #[command(flatten)]
        decision: DecisionOn,
        #[command(flatten)]
        talk: Talk,
    },
}

/// Whom to ask, and how to print.
#[derive(Debug, Args)]
pub struct Talk {
    #[command(flatten)]
    access: Access,
    /// Print JSON instead of a table.
    #[arg(long)]
    json: bool,
}

/// A version of a key, and why it changes.
#[derive(Debug, Args)]
pub struct Version {
    /// The key.
    label: String,
    /// Its version.
    #[arg(long)]
    version: u32,
    /// Why.
    #[arg(long)]
    reason: String,
}

/// A change that waits, and why it is decided so.
#[derive(Debug, Args)]
pub struct DecisionOn {
    /// The change's number.
    change: u64,
    /// Why: what was looked at.
    #[arg(long)]
    reason: String,
}

/// Runs one command and prints what came.
///
/// # Errors
/// Files that cannot be read, a gateway that refuses or does not answer, a change that the worker
/// refused.
pub async fn run(command: &KeyCommand) -> anyhow::Result<()> {
    match command {
        KeyCommand::List { talk } => {
            let answer = AdminClient::open(&talk.access)?.get("/v1/keys").await?;
            print_rows(&answer, "keys", &KEY_COLUMNS, talk.json)
        }
        KeyCommand::Changes { talk } => {
            let answer = AdminClient::open(&talk.access)?.get("/v1/keys/changes").await?;
            print_rows(&answer, "changes", &CHANGE_COLUMNS, talk.json)
        }
        KeyCommand::Import { profile, block_file, under, reason, talk } => {
            let body = import_body(profile, block_file, under, reason)?;
            post(talk, "/v1/keys/import", &body).await
        }
        KeyCommand::Activate { version, overlap_s, talk } => {
            change(talk, version, "activate", *overlap_s).await
        }
        KeyCommand::Retire { version, overlap_s, talk } => {
            change(talk, version, "retire", *overlap_s).await
        }
        KeyCommand::Compromise { version, talk } => change(talk, version, "compromise", None).await,
        KeyCommand::Approve { decision, talk } => decide(talk, decision, "approve").await,
        KeyCommand::Refuse { decision, talk } => decide(talk, decision, "refuse").await,
        KeyCommand::Withdraw { decision, talk } => decide(talk, decision, "withdraw").await,
    }
}

async fn change(
    talk: &Talk,
    version: &Version,
    what: &str,
    overlap_s: Option<u32>,
) -> anyhow::Result<()> {
    let Version { label, version, reason } = version;
    let mut body = json!({ "version": version, "reason": reason });
    if let Some(overlap_s) = overlap_s {
        body["overlap_s"] = overlap_s.into();
    }
    // A label that is none must not become another path.
    hsm_adapter::vocabulary::KeyLabel::parse(label).map_err(|rule| anyhow::anyhow!("{rule}"))?;
    post(talk, &format!("/v1/keys/{label}/{what}"), &body).await
}

async fn decide(talk: &Talk, decision: &DecisionOn, what: &str) -> anyhow::Result<()> {
    let DecisionOn { change, reason } = decision;
    post(talk, &format!("/v1/keys/changes/{change}/{what}"), &json!({ "reason": reason })).await
}

async fn post(talk: &Talk, path: &str, body: &Value) -> anyhow::Result<()> {
    let answer = AdminClient::open(&talk.access)?.post(path, body).await?;
    print_rows(&json!({ "changes": [answer] }), "changes", &CHANGE_COLUMNS, talk.json)?;
    if let Some(why) = answer["error"].as_str() {
        bail!("change {} is refused: {why}", answer["change"]);
    }
    Ok(())
}

/// Profile and block from files: both are looked at here first, where an error can name the line.
fn import_body(profile: &Path, block: &Path, under: &str, reason: &str) -> anyhow::Result<Value> {
    let register = KeyRegister::read(profile)?;
    let mut keys = register.iter();
    let key = keys.next().filter(|_| keys.next().is_none());
    let key = key.with_context(|| format!("{}: one [[key]] is wanted", profile.display()))?;
    ensure!(
        key.token_label.is_none() && key.usable_until_s.is_none(),
        "{}: an import chooses neither token_label nor usable_until_s",
        profile.display()
    );
    ensure!(
        matches!(key.state, KeyState::Active | KeyState::Staged),
        "{}: an imported key is staged",
        profile.display()
    );
    let mut profile = serde_json::to_value(key)?;
    // It is staged whatever the file says.
    if let Some(fields) = profile.as_object_mut() {
        fields.remove("state");
    }
    let text = std::fs::read_to_string(block).with_context(|| block.display().to_string())?;
    let (label, version) = match under.split_once('@') {
        Some((label, version)) => (label, Some(version.parse::<u32>().context("--under")?)),
        None => (under, None),
    };
    let mut body =
        json!({ "profile": profile, "under": label, "block": text.trim(), "reason": reason });
    if let Some(version) = version {
        body["under_version"] = version.into();
    }
    Ok(body)
}

/// Heads and fields of a table.
pub(crate) type Columns = [(&'static str, &'static str)];

const KEY_COLUMNS: [(&str, &str); 9] = [
    ("KEY", "label"),
    ("VERSION", "version"),
    ("STATE", "state"),
    ("ROLE", "role"),
    ("ALGORITHM", "algorithm"),
    ("MODE", "mode"),
    ("KCV", "kcv"),
    ("USABLE UNTIL", "usable_until"),
    ("QUARANTINED", "quarantined"),
];

const CHANGE_COLUMNS: [(&str, &str); 8] = [
    ("CHANGE", "change"),
    ("KIND", "kind"),
    ("KEY", "label"),
    ("VERSION", "version"),
    ("STATE", "state"),
    ("PROPOSER", "proposer"),
    ("DECIDER", "decider"),
    ("REASON", "reason"),
];

fn print_rows(answer: &Value, name: &str, columns: &Columns, as_json: bool) -> anyhow::Result<()> {
    if as_json {
        println!("{}", serde_json::to_string_pretty(&answer[name])?);
        return Ok(());
    }
    let rows = answer[name].as_array().context("the gateway answered in another form")?;
    print!("{}", table(rows, columns));
    Ok(())
}

/// Words of officers and operators are among the cells: no terminal obeys one.
pub(crate) fn table(rows: &[Value], columns: &Columns) -> String {
    let heads = columns.iter().map(|(head, _)| (*head).to_owned()).collect();
    let cell = |value: &Value| match value {
        Value::Null => String::new(),
        Value::String(text) => text.replace(char::is_control, " "),
        Value::Bool(_) | Value::Number(_) | Value::Array(_) | Value::Object(_) => value.to_string(),
    };
    let mut lines: Vec<Vec<String>> = vec![heads];
    lines
        .extend(rows.iter().map(|row| columns.iter().map(|(_, name)| cell(&row[*name])).collect()));
    let width = |at: usize| lines.iter().map(|line| line[at].len()).max().unwrap_or(0);
    let widths: Vec<usize> = (0..columns.len()).map(width).collect();
    let mut text = String::new();
    for line in &lines {
        let cells: Vec<String> =
            line.iter().zip(&widths).map(|(cell, width)| format!("{cell:width$}")).collect();
        text.push_str(cells.join("  ").trim_end());
        text.push('\n');
    }
    text
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_table_has_heads_and_straight_columns() {
        let rows = [json!({"label": "zpk.a", "version": 1, "kcv": "BF1D3F"})];

        let text = table(&rows, &[("KEY", "label"), ("VERSION", "version"), ("X", "absent")]);

        assert_eq!(text, "KEY    VERSION  X\nzpk.a  1\n");
    }

    #[test]
    fn an_import_is_read_from_two_files_and_never_active() {
        let dir = tempfile::tempdir().unwrap();
        let (profile, block) = (dir.path().join("key.toml"), dir.path().join("block"));
        let key = "[[key]]\nlabel = \"zpk.a\"\nversion = 2\nrole = \"zone-pin-in\"\n\
            algorithm = \"aes\"\nformats = [\"iso4\"]\n";
        std::fs::write(&profile, key).unwrap();
        std::fs::write(&block, "D0112P0AE00N0000\n").unwrap();

        let body = import_body(&profile, &block, "kek.a@3", "new").unwrap();

        assert_eq!(body["block"], "D0112P0AE00N0000");
        assert_eq!((&body["under"], &body["under_version"]), (&json!("kek.a"), &json!(3)));
        assert_eq!(
            (&body["profile"]["version"], &body["profile"]["state"]),
            (&json!(2), &Value::Null)
        );
        std::fs::write(&profile, format!("{key}{}", key.replace("zpk.a", "zpk.b"))).unwrap();
        let two = import_body(&profile, &block, "kek.a", "new").unwrap_err().to_string();
        assert!(two.contains("one [[key]] is wanted"), "{two}");
        std::fs::write(&profile, format!("{key}value = \"00\"\n")).unwrap();
        assert!(import_body(&profile, &block, "kek.a", "new").is_err());
    }
}
