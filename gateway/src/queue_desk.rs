//! `tollgate queue`: the operator's commands, through the admin API of a running gateway.

use std::process::ExitCode;
use std::time::Duration;

use anyhow::{Context, bail, ensure};
use clap::{Args, Subcommand};
use serde_json::{Value, json};
use tokio::time::{Instant, sleep};

use crate::key_desk::{Columns, table};
use crate::operator::{self, Access, AdminClient};
use crate::progress::Progress;

/// `tollgate queue ...`
#[derive(Debug, Subcommand)]
#[command(after_help = EXITS)]
#[expect(missing_docs, reason = "flattened fields have no help of their own")]
pub enum QueueCommand {
    /// Payments, newest first.
    List {
        #[command(flatten)]
        filter: Box<Filter>,
        #[command(flatten)]
        talk: Talk,
    },
    /// One payment with all that happened to it.
    Show {
        /// The payment.
        id: String,
        #[command(flatten)]
        talk: Talk,
    },
    /// What is open by status, priority, biller and reason, and which billers are paused.
    Stats {
        #[command(flatten)]
        talk: Talk,
    },
    /// Makes a payment due now; one that is held, or whose attempts are used up, from the start.
    #[command(after_help = EXITS)]
    Retry {
        #[command(flatten)]
        order: Order,
        #[command(flatten)]
        follow: Follow,
    },
    /// Takes back a payment of which nothing was sent. One that may have been made is reversed, where its
    /// biller does so; that takes two operators.
    #[command(after_help = EXITS)]
    Cancel {
        #[command(flatten)]
        order: Order,
    },
    /// Leaves a waiting payment, and those of its bill behind it, to a person.
    #[command(after_help = EXITS)]
    Hold {
        #[command(flatten)]
        order: Order,
    },
    /// Lets a held payment wait again.
    #[command(after_help = EXITS)]
    Release {
        #[command(flatten)]
        order: Order,
        #[command(flatten)]
        follow: Follow,
    },
    /// Ends a held payment that may have been made, as you found out at its biller. Takes two operators.
    #[command(after_help = EXITS)]
    Settle {
        #[command(flatten)]
        order: Order,
        /// What the biller says.
        #[arg(long, value_parser = ["paid", "failed"])]
        outcome: String,
        /// What its client is answered: 1 to 4 letters or digits; 00 or 96 when absent.
        #[arg(long)]
        response_code: Option<String>,
    },
    /// Takes back what you have proposed.
    Withdraw {
        #[command(flatten)]
        order: Order,
    },
    /// Sends nothing more to a biller, from any replica, until it is resumed.
    Pause {
        #[command(flatten)]
        order: TargetOrder,
    },
    /// Ends a pause.
    Resume {
        #[command(flatten)]
        order: TargetOrder,
        #[command(flatten)]
        follow: Follow,
    },
    /// Lets the queue go on after an old copy of the database was restored. Compare with the billers first
    /// what the audit log has and the database lacks.
    AcknowledgeRollback {
        /// Why.
        #[arg(long)]
        reason: String,
        #[command(flatten)]
        access: Access,
    },
}

const EXITS: &str = "Exit codes: 0 when it is done, 3 when another operator must confirm it with \
    the same command, 1 when it is refused, fails or is not done in time.";

/// Another operator must confirm.
const PROPOSED: u8 = 3;

/// Whom to ask, and how to print.
#[derive(Debug, Args)]
pub struct Talk {
    #[command(flatten)]
    access: Access,
    /// Print JSON instead of a table.
    #[arg(long)]
    json: bool,
}

/// Which payments.
#[derive(Debug, Args)]
pub struct Filter {
    /// Only these: pending, processing, success, failed, expired, cancelled, held; with commas.
    #[arg(long)]
    status: Option<String>,
    /// Only those that are held, failed or expired.
    #[arg(long)]
    dead: bool,
    /// Only of this biller.
    #[arg(long)]
    biller: Option<String>,
    /// Only of this kind.
    #[arg(long)]
    kind: Option<String>,
    /// Only of this priority: critical, high, normal, low.
    #[arg(long)]
    priority: Option<String>,
    /// Only those held for this reason: ambiguous, operator, poison, tampered, rollback, not-accepted.
    #[arg(long)]
    hold_reason: Option<String>,
    /// Only those older than this. Seconds.
    #[arg(long)]
    older_than_s: Option<u32>,
    /// Behind this one: the SEQ of the last page's last.
    #[arg(long)]
    after: Option<i64>,
    /// Oldest first.
    #[arg(long)]
    oldest_first: bool,
    /// At most so many, up to 500.
    #[arg(long, default_value_t = 100)]
    limit: u32,
}

impl Filter {
    fn query(&self) -> String {
        let dead = self.dead.then(|| "true".to_owned());
        let order = self.oldest_first.then(|| "asc".to_owned());
        let given = [
            ("status", self.status.clone()),
            ("dead", dead),
            ("biller", self.biller.clone()),
            ("kind", self.kind.clone()),
            ("priority", self.priority.clone()),
            ("hold_reason", self.hold_reason.clone()),
            ("older_than_s", self.older_than_s.map(|seconds| seconds.to_string())),
            ("after", self.after.map(|seq| seq.to_string())),
            ("order", order),
            ("limit", Some(self.limit.to_string())),
        ];
        let given = given.into_iter().filter_map(|(name, value)| Some((name, value?)));
        given
            .map(|(name, value)| format!("{name}={}", escaped(&value)))
            .collect::<Vec<_>>()
            .join("&")
    }
}

/// What is to be done with one payment, and why.
#[derive(Debug, Args)]
pub struct Order {
    /// The payment.
    id: String,
    /// Why.
    #[arg(long)]
    reason: String,
    #[command(flatten)]
    talk: Talk,
}

/// What is to be done with a biller, and why.
#[derive(Debug, Args)]
pub struct TargetOrder {
    /// The biller.
    biller: String,
    /// Why.
    #[arg(long)]
    reason: String,
    #[command(flatten)]
    talk: Talk,
}

/// Whether to stay until it is done.
#[derive(Debug, Args)]
pub struct Follow {
    /// Stay until the payment has ended, or nothing waits for the biller any more.
    #[arg(long)]
    wait: bool,
    /// How long at most. Seconds.
    #[arg(long, default_value_t = 60, requires = "wait",
          value_parser = clap::value_parser!(u64).range(1..=86_400))]
    timeout: u64,
}

/// Runs one command and prints what came.
///
/// # Errors
/// A gateway that refuses or does not answer; what was waited for and did not come.
pub async fn run(command: &QueueCommand) -> anyhow::Result<ExitCode> {
    match command {
        QueueCommand::List { filter, talk } => {
            let path = format!("/v1/queue?{}", filter.query());
            let answer = AdminClient::open(&talk.access)?.get(&path).await?;
            print_rows(&answer, "payments", &LIST, talk.json)?;
        }
        QueueCommand::Show { id, talk } => {
            let shown = AdminClient::open(&talk.access)?.get(&payment(id)?).await?;
            print!("{}", if talk.json { pretty(&shown) } else { whole(&shown) });
        }
        QueueCommand::Stats { talk } => {
            let gateway = AdminClient::open(&talk.access)?;
            let mut stats = gateway.get("/v1/queue/stats").await?;
            stats["targets"] = gateway.get("/v1/queue/targets").await?["targets"].take();
            print!("{}", if talk.json { pretty(&stats) } else { figures(&stats) });
        }
        QueueCommand::Retry { order, follow } => {
            return act(order, "retry", json!({}), follow).await;
        }
        QueueCommand::Cancel { order } => return act(order, "cancel", json!({}), &NO_WAIT).await,
        QueueCommand::Hold { order } => return act(order, "hold", json!({}), &NO_WAIT).await,
        QueueCommand::Release { order, follow } => {
            return act(order, "release", json!({}), follow).await;
        }
        QueueCommand::Settle { order, outcome, response_code } => {
            let mut body = json!({ "outcome": outcome });
            if let Some(code) = response_code {
                body["response_code"] = code.as_str().into();
            }
            return act(order, "settle", body, &NO_WAIT).await;
        }
        QueueCommand::Withdraw { order } => {
            return act(order, "withdraw", json!({}), &NO_WAIT).await;
        }
        QueueCommand::Pause { order } => control(order, "pause", &NO_WAIT).await?,
        QueueCommand::Resume { order, follow } => control(order, "resume", follow).await?,
        QueueCommand::AcknowledgeRollback { reason, access } => {
            print!("{}", operator::acknowledge_rollback(access, reason).await?);
        }
    }
    Ok(ExitCode::SUCCESS)
}

const NO_WAIT: Follow = Follow { wait: false, timeout: 0 };

async fn act(
    order: &Order,
    action: &str,
    mut body: Value,
    follow: &Follow,
) -> anyhow::Result<ExitCode> {
    let Order { id, reason, talk } = order;
    body["reason"] = reason.as_str().into();
    let (path, gateway) = (payment(id)?, AdminClient::open(&talk.access)?);
    let answer = gateway.post(&format!("{path}/{action}"), &body).await?;
    let rows = json!({ "made": [answer] });
    print_rows(&rows, "made", &MADE, talk.json)?;
    if rows["made"][0]["decision"] == "proposed" {
        eprintln!("another operator must confirm this with the same command");
        return Ok(ExitCode::from(PROPOSED));
    }
    if follow.wait {
        follow_payment(&gateway, &path, follow.timeout).await?;
    }
    Ok(ExitCode::SUCCESS)
}

async fn control(order: &TargetOrder, what: &str, follow: &Follow) -> anyhow::Result<()> {
    let TargetOrder { biller, reason, talk } = order;
    // A name that is none must not become another path.
    let plain = |c: u8| c.is_ascii_alphanumeric() || matches!(c, b'_' | b'-');
    ensure!(!biller.is_empty() && biller.bytes().all(plain), "{biller:?} is no name of a biller");
    let gateway = AdminClient::open(&talk.access)?;
    let path = format!("/v1/queue/targets/{biller}/{what}");
    let answer = gateway.post(&path, &json!({ "reason": reason })).await?;
    print_rows(&json!({ "targets": [answer] }), "targets", &TARGETS, talk.json)?;
    if follow.wait {
        follow_target(&gateway, biller, follow.timeout).await?;
    }
    Ok(())
}

/// Until the payment has ended. Only paid is good.
async fn follow_payment(gateway: &AdminClient, path: &str, timeout: u64) -> anyhow::Result<()> {
    let mut progress = Progress::new(1);
    let status = watch(timeout, async || {
        let shown = gateway.get(path).await?;
        let status = shown["status"].as_str().unwrap_or_default().to_owned();
        let ended = !matches!(&*status, "PENDING" | "PROCESSING");
        progress.show(u64::from(ended), &status);
        Ok(ended.then_some(status))
    })
    .await?;
    ensure!(status == "SUCCESS", "the payment is {status}");
    Ok(())
}

/// Until nothing waits for the biller any more.
async fn follow_target(gateway: &AdminClient, biller: &str, timeout: u64) -> anyhow::Result<()> {
    let mut progress: Option<Progress> = None;
    watch(timeout, async || {
        let answer = gateway.get("/v1/queue/targets").await?;
        let targets = answer["targets"].as_array().context("the gateway answered otherwise")?;
        let target = targets.iter().find(|target| target["biller"] == biller);
        let rows = |status| target.and_then(|target| target[status].as_u64()).unwrap_or(0);
        let left = rows("pending") + rows("processing");
        let progress = progress.get_or_insert_with(|| Progress::new(left));
        progress.show(progress.total().saturating_sub(left), &format!("{left} left"));
        Ok((left == 0).then_some(()))
    })
    .await
}

/// Looks again and again until there is something. The pauses grow to 2 s, so that one who looks on
/// uses half of an operator's calls at most; what goes wrong in between may go right at the next look.
async fn watch<T>(
    timeout: u64,
    mut look: impl AsyncFnMut() -> anyhow::Result<Option<T>>,
) -> anyhow::Result<T> {
    let limit = Instant::now() + Duration::from_secs(timeout);
    let mut pause = Duration::from_millis(250);
    loop {
        let missed = match look().await {
            Ok(Some(found)) => return Ok(found),
            Ok(None) => None,
            Err(error) => Some(error),
        };
        if Instant::now() + pause > limit {
            match missed {
                Some(error) => return Err(error.context(format!("not done within {timeout} s"))),
                None => bail!("not done within {timeout} s; it goes on by itself"),
            }
        }
        sleep(pause).await;
        pause = (pause * 2).min(Duration::from_secs(2));
    }
}

/// An id that is none must not become another path.
fn payment(id: &str) -> anyhow::Result<String> {
    let id = uuid::Uuid::parse_str(id).with_context(|| format!("{id:?} is no payment's id"))?;
    Ok(format!("/v1/queue/{id}"))
}

/// All that is no plain letter, digit or comma as a URL's query writes it.
fn escaped(value: &str) -> String {
    let mut text = String::new();
    for byte in value.bytes() {
        if byte.is_ascii_alphanumeric() || matches!(byte, b'-' | b'_' | b'.' | b',') {
            text.push(char::from(byte));
        } else {
            text.push_str(&format!("%{byte:02X}"));
        }
    }
    text
}

fn print_rows(answer: &Value, name: &str, columns: &Columns, as_json: bool) -> anyhow::Result<()> {
    if as_json {
        print!("{}", pretty(&answer[name]));
        return Ok(());
    }
    let rows = answer[name].as_array().context("the gateway answered in another form")?;
    print!("{}", table(rows, columns));
    Ok(())
}

fn pretty(value: &Value) -> String {
    format!("{value:#}\n")
}

/// One payment: what it is, then what happened to it.
fn whole(shown: &Value) -> String {
    let mut text = table(std::slice::from_ref(shown), &LIST);
    text.push('\n');
    text.push_str(&table(std::slice::from_ref(shown), &MORE));
    if shown["decision"].is_object() {
        text.push('\n');
        text.push_str(&table(std::slice::from_ref(&shown["decision"]), &DECISION));
    }
    text.push('\n');
    text.push_str(&table(list(&shown["history"]), &HISTORY));
    text
}

/// What is open, then the billers, then the two figures that say whether somebody should hurry.
fn figures(stats: &Value) -> String {
    let mut text = table(list(&stats["depth"]), &DEPTH);
    text.push('\n');
    text.push_str(&table(list(&stats["targets"]), &TARGETS));
    let oldest = stats["oldest_s"].as_i64();
    let oldest = oldest.map_or_else(|| "none".to_owned(), |seconds| format!("{seconds} s"));
    let expiring = &stats["expiring_within_the_hour"];
    text.push_str(&format!("\noldest {oldest}, {expiring} expire within the hour\n"));
    if stats["rolled_back"] == true {
        text.push_str(ROLLED_BACK);
    }
    text
}

fn list(value: &Value) -> &[Value] {
    value.as_array().map_or(&[], Vec::as_slice)
}

const ROLLED_BACK: &str = "the database is an old copy: nothing is forwarded or taken until \
    `tollgate queue acknowledge-rollback`\n";

const LIST: [(&str, &str); 9] = [
    ("SEQ", "seq"),
    ("ID", "id"),
    ("BILLER", "biller"),
    ("PRIORITY", "priority"),
    ("STATUS", "status"),
    ("HELD FOR", "hold_reason"),
    ("MAYBE SENT", "sent_unknown"),
    ("ATTEMPTS", "attempts"),
    ("CREATED", "created_at"),
];

const MORE: [(&str, &str); 7] = [
    ("CLIENT", "client"),
    ("KIND", "kind"),
    ("LAST CODE", "last_code"),
    ("BEFORE IT", "before"),
    ("LEASED TO", "lease_owner"),
    ("TRY AGAIN", "dead_letter"),
    ("EXPIRES", "expires_at"),
];

const DECISION: [(&str, &str); 6] = [
    ("PROPOSED", "action"),
    ("OUTCOME", "outcome"),
    ("CODE", "response_code"),
    ("BY", "proposer"),
    ("UNTIL", "expires_at"),
    ("REASON", "reason"),
];

const HISTORY: [(&str, &str); 6] = [
    ("AT", "at"),
    ("WHAT", "what"),
    ("CODE", "code"),
    ("BY", "actor"),
    ("PROPOSED BY", "proposer"),
    ("REASON", "reason"),
];

const DEPTH: [(&str, &str); 5] = [
    ("BILLER", "biller"),
    ("STATUS", "status"),
    ("PRIORITY", "priority"),
    ("HELD FOR", "hold_reason"),
    ("ROWS", "rows"),
];

const TARGETS: [(&str, &str); 7] = [
    ("BILLER", "biller"),
    ("PAUSED", "paused"),
    ("PENDING", "pending"),
    ("PROCESSING", "processing"),
    ("HELD", "held"),
    ("BY", "actor"),
    ("REASON", "reason"),
];

const MADE: [(&str, &str); 5] = [
    ("ID", "id"),
    ("ACTION", "action"),
    ("DECISION", "decision"),
    ("STATUS", "status"),
    ("PROPOSED BY", "proposer"),
];

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_filter_becomes_a_query_that_nothing_breaks_out_of() {
        let filter = Filter {
            status: Some("held,failed".into()),
            dead: true,
            biller: Some("p&limit=1 %".into()),
            kind: None,
            priority: None,
            hold_reason: None,
            older_than_s: Some(60),
            after: Some(-7),
            oldest_first: true,
            limit: 5,
        };

        let query = filter.query();

        let expected = "status=held,failed&dead=true&biller=p%26limit%3D1%20%25&older_than_s=60\
            &after=-7&order=asc&limit=5";
        assert_eq!(query, expected);
        assert!(payment("../targets").is_err());
    }

    #[tokio::test(start_paused = true)]
    async fn who_waits_sees_it_end_or_is_told_after_the_time() {
        let mut looks = 0;
        let found = watch(60, async || {
            looks += 1;
            if looks == 2 {
                bail!("a gateway that starts anew");
            }
            Ok((looks == 4).then_some(looks))
        });
        let found = found.await.unwrap();
        let never = watch(60, async || Ok(None::<()>)).await.unwrap_err();
        let away =
            watch(60, async || -> anyhow::Result<Option<()>> { bail!("away") }).await.unwrap_err();

        assert_eq!(found, 4);
        assert!(never.to_string().starts_with("not done within 60 s"), "{never}");
        assert!(format!("{away:#}").ends_with("away"), "{away:#}");
    }

    #[test]
    fn one_payment_is_told_with_what_is_proposed_and_what_happened() {
        let shown = json!({
            "seq": 1, "id": "i", "status": "HELD", "before": 0,
            "decision": {"action": "settle", "outcome": "paid", "proposer": "op-1"},
            "history": [{"what": "held", "actor": "op-1", "reason": "a\u{1b}[2J"}],
        });

        let text = whole(&shown);

        let words = |line: &str| line.split_whitespace().map(str::to_owned).collect::<Vec<_>>();
        let lines: Vec<Vec<String>> = text.lines().map(words).collect();
        assert!(lines.contains(&vec!["settle".into(), "paid".into(), "op-1".into()]), "{text}");
        assert!(lines.contains(&vec!["held".into(), "op-1".into(), "a".into(), "[2J".into()]));
    }
}
