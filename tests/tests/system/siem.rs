//! Copies of each record at a syslog server that is not ours: syslog-ng, over mutual TLS, parsed by it.

use std::collections::{BTreeMap, BTreeSet};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::time::Duration;

use harness::acquirer::Payment;
use harness::world::{Wanted, World, free_ports};
use serde_json::Value;
use tokio::task::JoinSet;
use tokio::time::{Instant, sleep};

use crate::support::{Counter, until};

/// A syslog-ng of its own: configuration, state and what it received are in one directory. Dropping it kills it.
struct SyslogNg {
    dir: PathBuf,
    port: u16,
    child: Option<Child>,
}

impl SyslogNg {
    /// With the certificate of the billing simulator, and clients of the same authority alone.
    fn prepare(world: &World, port: u16) -> Self {
        let dir = world.dir().join("syslog-ng");
        std::fs::create_dir(&dir).unwrap();
        let text = CONFIGURATION
            .replace("@PORT@", &port.to_string())
            .replace("@PKI@", &world.pki().display().to_string())
            .replace("@DIR@", &dir.display().to_string());
        std::fs::write(dir.join("syslog-ng.conf"), text).unwrap();
        Self { dir, port, child: None }
    }

    /// Starts it and waits until it listens.
    async fn start(&mut self) {
        let log = std::fs::OpenOptions::new()
            .create(true)
            .append(true)
            .open(self.dir.join("log"))
            .unwrap();
        let file = |name: &str| self.dir.join(name);
        let child = Command::new(program())
            .args(["-F", "-e", "--no-caps", "-f"])
            .arg(file("syslog-ng.conf"))
            .arg("-R")
            .arg(file("persist"))
            .arg("-p")
            .arg(file("pid"))
            .arg("-c")
            .arg(file("control"))
            .stdin(Stdio::null())
            .stdout(log.try_clone().unwrap())
            .stderr(log)
            .spawn()
            .unwrap();
        self.child = Some(child);
        let limit = Instant::now() + Duration::from_secs(20);
        while tokio::net::TcpStream::connect(("127.0.0.1", self.port)).await.is_err() {
            let ended = self.child.as_mut().unwrap().try_wait().unwrap();
            let log = || std::fs::read_to_string(self.dir.join("log")).unwrap_or_default();
            assert!(ended.is_none() && Instant::now() < limit, "it does not listen: {}", log());
            sleep(Duration::from_millis(50)).await;
        }
    }

    /// SIGKILL.
    fn kill(&mut self) {
        if let Some(mut child) = self.child.take() {
            let _ = child.kill();
            let _ = child.wait();
        }
    }

    /// What it received and parsed, one object a message.
    fn received(&self) -> Vec<Value> {
        let text = std::fs::read(self.dir.join("received")).unwrap_or_default();
        let text = String::from_utf8(text).unwrap();
        // A kill tears the last line; what follows in the next run has a line of its own.
        text.lines().filter_map(|line| serde_json::from_str(line).ok()).collect()
    }

    /// The structured data of each message that has some, by number; of repeats the last.
    fn records(&self) -> BTreeMap<u64, Value> {
        let all = self.received().into_iter();
        all.filter_map(|message| {
            let data = &message["_SDATA"]["tollgate@32473"];
            Some((data["seq"].as_str()?.parse().ok()?, message))
        })
        .collect()
    }
}

impl Drop for SyslogNg {
    fn drop(&mut self) {
        self.kill();
    }
}

/// A world with a sink for each of the formats, all at one server that runs.
async fn world(formats: &'static [&'static str]) -> (World, SyslogNg) {
    let [port] = free_ports::<1>().unwrap();
    let edit = move |table: &mut toml::Table| {
        let dir = table["audit"]["dir"].as_str().unwrap().to_owned();
        let pki = Path::new(&dir).with_file_name("pki");
        let sink = |format: &&str| {
            let file = |name: &str| pki.join(name).display().to_string();
            toml::Value::from(toml::Table::from_iter([
                ("name".into(), (*format).into()),
                ("address".into(), format!("127.0.0.1:{port}").into()),
                ("server_name".into(), "localhost".into()),
                ("ca".into(), file("ca.crt").into()),
                ("certificate".into(), file("tollgate.crt").into()),
                ("key".into(), file("tollgate.key").into()),
                ("format".into(), (*format).into()),
                ("confirm_s".into(), 2.into()),
            ]))
        };
        let sinks: Vec<toml::Value> = formats.iter().map(sink).collect();
        table["audit"].as_table_mut().unwrap().insert("sink".into(), sinks.into());
    };
    let mut world =
        World::prepare(Wanted { edit: Some(Box::new(edit)), ..Wanted::default() }).unwrap();
    let mut server = SyslogNg::prepare(&world, port);
    server.start().await;
    world.start_billing().await.unwrap();
    world.start_gateway().await.unwrap();
    (world, server)
}

/// Waits until the server has each of the gateway's records, and compares all that an auditor asks of them.
async fn assert_all_arrive(world: &World, server: &SyslogNg) {
    let written: BTreeMap<u64, Value> = {
        let all = world.audit().unwrap().into_iter();
        all.map(|record| (record["seq"].as_u64().unwrap(), record)).collect()
    };
    let missing = || {
        let there: BTreeSet<u64> = server.records().into_keys().collect();
        written.keys().filter(|seq| !there.contains(seq)).copied().collect::<Vec<_>>()
    };
    let limit = Instant::now() + Duration::from_secs(45);
    while !missing().is_empty() {
        assert!(Instant::now() < limit, "of {}: {:?} are missing", written.len(), missing());
        sleep(Duration::from_millis(200)).await;
    }
    let parsed = server.records();
    for (seq, record) in &written {
        assert_same(record, &parsed[seq]);
    }
}

/// The six fields of PCI DSS 10.2.2, and the place in the chain.
fn assert_same(record: &Value, message: &Value) {
    let data = &message["_SDATA"]["tollgate@32473"];
    for (name, value) in [
        ("actor", &record["actor"]["id"]),
        ("actorType", &record["actor"]["type"]),
        ("eventType", &record["event"]["type"]),
        ("eventId", &record["event"]["id"]),
        ("time", &record["time"]),
        ("outcome", &record["outcome"]),
        ("replica", &record["replica"]),
        ("boot", &record["boot"]),
        ("resource", &record["resource"]["id"]),
        ("resourceType", &record["resource"]["type"]),
        ("hash", &record["hash"]),
        ("prevHash", &record["prev_hash"]),
        ("stream", &record["stream"]),
    ] {
        assert_eq!(&data[name], value, "{name} of {record} in {message}");
    }
    for (name, value) in [
        ("srcIp", &record["src"]["ip"]),
        ("listener", &record["listener"]),
        ("requestId", &record["request_id"]),
        ("reason", &record["reason"]),
    ] {
        assert_eq!(data.get(name).unwrap_or(&Value::Null), value, "{name} of {record}");
    }
    assert_eq!(message["MSGID"], record["event"]["type"]);
    assert_eq!((&message["HOST"], &message["PROGRAM"]), (&record["replica"], &"tollgate".into()));
}

/// Payments, MACs, and what is refused.
async fn ask(world: &World, round: usize) {
    let counter = Counter::a(world);
    let body = counter.body(&Payment::of("pdam", &format!("bill-{round}")));
    counter.pay(&format!("key-{round}"), &body).await;
    let made = counter.client.generate_mac("zak.acquirer-a", &[round as u8; 40]).await.unwrap();
    assert!(!counter.client.verify_mac("zak.acquirer-c", &[1, 2], &made.mac).await.unwrap());
    let refused = counter.client.generate_mac("zak.acquirer-b", &[1]).await;
    assert!(refused.is_err());
}

#[tokio::test]
async fn every_record_is_parsed_by_syslog_ng_with_its_six_fields_and_each_format_arrives() {
    let (mut world, server) = world(&["syslog", "jsonl", "cef", "leef", "ocsf"]).await;

    for round in 0..10 {
        ask(&world, round).await;
    }
    let check = tollgate_check(&world).await;
    for format in ["syslog", "jsonl", "cef", "leef", "ocsf"] {
        let row = check.lines().find(|line| line.contains(&format!("sink {format:?}")));
        assert!(row.is_some_and(|row| row.starts_with("ok ")), "{check}");
    }
    let lag = world.metric("tollgate_audit_sink_lag_seconds{sink=\"cef\"}").await.unwrap();
    let sent = world.metric("tollgate_audit_sink_sent_total{sink=\"cef\"}").await.unwrap();
    assert!(lag < 30.0 && sent > 40.0, "{lag} {sent}");
    world.stop_gateway().await.unwrap();

    assert_all_arrive(&world, &server).await;
    let written = world.audit().unwrap();
    assert_eq!(written.last().unwrap()["event"]["type"], "audit.stop");
    assert_formats(&server, &written);
}

/// Each of the other formats has each record, as the text of a message with the header of the record.
fn assert_formats(server: &SyslogNg, written: &[Value]) {
    let text = |message: &Value| message["MESSAGE"].as_str().unwrap().to_owned();
    let received = server.received();
    let json: Vec<Value> =
        received.iter().filter_map(|message| serde_json::from_str(&text(message)).ok()).collect();
    for record in written {
        let (id, kind) = (record["event"]["id"].as_str().unwrap(), &record["event"]["type"]);
        assert!(json.contains(record), "jsonl: {record}");
        assert!(json.iter().any(|ocsf| ocsf["metadata"]["uid"] == id), "ocsf: {record}");
        for begin in ["CEF:0|Tollgate|", "LEEF:2.0|Tollgate|"] {
            let found = received
                .iter()
                .find(|message| text(message).starts_with(begin) && text(message).contains(id));
            assert_eq!(&found.unwrap_or_else(|| panic!("{begin} {record}"))["MSGID"], kind);
        }
    }
}

async fn tollgate_check(world: &World) -> String {
    let program = harness::world::program("tollgate").unwrap();
    let mut command = tokio::process::Command::new(program);
    command.arg("check").arg("--config").arg(world.config());
    let output = command.kill_on_drop(true).output().await.unwrap();
    String::from_utf8(output.stdout).unwrap()
}

#[tokio::test]
async fn a_server_killed_under_load_has_every_record_in_the_end() {
    let (mut world, mut server) = world(&["syslog", "jsonl"]).await;
    let mut load = JoinSet::new();
    for worker in 0..4_u8 {
        let client = world.client("acquirer-a").unwrap();
        load.spawn(async move {
            let end = Instant::now() + Duration::from_secs(9);
            while Instant::now() < end {
                client.generate_mac("zak.acquirer-a", &[worker; 16]).await.unwrap();
            }
        });
    }

    for _ in 0..3 {
        sleep(Duration::from_millis(1_700)).await;
        server.kill();
        sleep(Duration::from_millis(900)).await;
        server.start().await;
    }
    while let Some(worked) = load.join_next().await {
        worked.unwrap();
    }

    let failures = "tollgate_audit_sink_failures_total{sink=\"syslog\"}";
    assert!(world.metric(failures).await.unwrap() >= 3.0);
    // What the last server got must have stood for a while before the end.
    until("everything is confirmed", Duration::from_secs(40), async || {
        world.metric("tollgate_audit_sink_lag_seconds{sink=\"syslog\"}").await.unwrap() < 6.0
    })
    .await;
    world.stop_gateway().await.unwrap();
    assert!(world.audit().unwrap().len() > 300);
    assert_all_arrive(&world, &server).await;
}

/// By hand or by `make test`.
fn program() -> PathBuf {
    let path = std::env::var_os("PATH").unwrap_or_default();
    let more = ["/usr/sbin", "/usr/local/sbin", "/opt/homebrew/sbin"].map(PathBuf::from);
    let mut all = std::env::split_paths(&path).chain(more).map(|dir| dir.join("syslog-ng"));
    all.find(|file| file.is_file()).expect("install syslog-ng, as `make test` does: syslog-ng-core")
}

const CONFIGURATION: &str = r#"@version: 3.35
options { keep-hostname(yes); use-dns(no); dns-cache(no); stats-freq(0); log-msg-size(16384); };
source sinks {
    syslog(
        ip("127.0.0.1") port(@PORT@) transport("tls") max-connections(20)
        tls(
            key-file("@PKI@/billing.key") cert-file("@PKI@/billing.crt") ca-file("@PKI@/ca.crt")
            peer-verify(required-trusted)
        )
    );
};
destination received {
    file("@DIR@/received" template("\n$(format-json --scope rfc5424 --key .SDATA.*)\n"));
};
log { source(sinks); destination(received); flags(flow-control); };
"#;
