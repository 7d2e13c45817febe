//! The command line as a client of a running gateway: one call of its admin API, over mutual TLS
//! like everything else.
//!
//! Whom a call is from is the certificate: a monitor's of `[probe]`, or the person's own, named on
//! the command line. A change needs a person's.

use std::net::SocketAddr;
use std::path::{Path, PathBuf};
use std::time::Duration;

use anyhow::{Context, bail, ensure};
use reqwest::Method;
use serde_json::{Value, json};

use crate::config::Config;

/// Where the gateway is and who asks.
#[derive(Debug, Clone, clap::Args)]
pub struct Access {
    /// The configuration file: the admin listener's address, and the files below from `[probe]`.
    #[arg(long)]
    pub config: PathBuf,
    /// Your client certificate, PEM; that of `[probe]` when absent.
    #[arg(long, requires = "key")]
    pub certificate: Option<PathBuf>,
    /// Its key, PEM.
    #[arg(long, requires = "certificate")]
    pub key: Option<PathBuf>,
    /// PEM of the CA of the admin listener's certificate; that of `[probe]` when absent.
    #[arg(long)]
    pub ca: Option<PathBuf>,
}

/// A running gateway's admin API.
#[derive(Debug)]
pub struct AdminClient {
    client: reqwest::Client,
    base: String,
}

impl AdminClient {
    /// # Errors
    /// A configuration or file that cannot be read; no certificate named anywhere.
    pub fn open(access: &Access) -> anyhow::Result<Self> {
        let config = Config::load(&access.config)?;
        let probe = config.probe.as_ref();
        let file = |own: &Option<PathBuf>, probed: Option<&PathBuf>, flag: &str| {
            let path = own.as_ref().or(probed);
            path.cloned().with_context(|| format!("[probe] is not configured: name {flag}"))
        };
        let ca = file(&access.ca, probe.map(|probe| &probe.ca), "--ca")?;
        let certificate =
            file(&access.certificate, probe.map(|probe| &probe.certificate), "--certificate")?;
        let key = file(&access.key, probe.map(|probe| &probe.key), "--key")?;
        let server_name = probe.map_or("localhost", |probe| probe.server_name.as_str());
        Self::new(config.admin.listen, server_name, &ca, &certificate, &key)
    }

    fn new(
        mut address: SocketAddr,
        server_name: &str,
        ca: &Path,
        certificate: &Path,
        key: &Path,
    ) -> anyhow::Result<Self> {
        let read = |path: &Path| std::fs::read(path).with_context(|| path.display().to_string());
        let mut identity = zeroize::Zeroizing::new(read(certificate)?);
        identity.push(b'\n');
        identity.extend(zeroize::Zeroizing::new(read(key)?).iter());
        if address.ip().is_unspecified() {
            address.set_ip([127, 0, 0, 1].into());
        }
        let client = reqwest::Client::builder()
            .tls_certs_only(reqwest::Certificate::from_pem_bundle(&read(ca)?)?)
            .identity(reqwest::Identity::from_pem(&identity)?)
            .resolve(server_name, address)
            .timeout(Duration::from_secs(10))
            .no_proxy()
            .build()?;
        Ok(Self { client, base: format!("https://{server_name}:{}", address.port()) })
    }

    /// The body of a 200 as JSON.
    ///
    /// # Errors
    /// See [`text`](Self::text).
    pub async fn get(&self, path: &str) -> anyhow::Result<Value> {
        parse(path, &self.text(Method::GET, path, None).await?)
    }

    /// Asks for a change; the body of its 2xx as JSON, `null` when there is none.
    ///
    /// # Errors
    /// See [`text`](Self::text).
    pub async fn post(&self, path: &str, body: &Value) -> anyhow::Result<Value> {
        parse(path, &self.text(Method::POST, path, Some(body)).await?)
    }

    /// The body of a 2xx.
    ///
    /// # Errors
    /// Not reachable, or any other status: then the error says what came.
    pub async fn text(
        &self,
        method: Method,
        path: &str,
        body: Option<&Value>,
    ) -> anyhow::Result<String> {
        let url = format!("{}{path}", self.base);
        let mut request = self.client.request(method, &url);
        if let Some(body) = body {
            request = request.json(body);
        }
        let answer = request.send().await.with_context(|| format!("asking {url}"))?;
        told(&url, answer).await
    }

    /// The body of a 200, piece by piece as it comes, for at most `limit`. Gives its bytes.
    ///
    /// # Errors
    /// As [`text`](Self::text); a body that breaks off; what `take` says.
    pub async fn download(
        &self,
        path: &str,
        limit: Duration,
        mut take: impl FnMut(&[u8]) -> std::io::Result<()>,
    ) -> anyhow::Result<u64> {
        let url = format!("{}{path}", self.base);
        let asked = self.client.get(&url).timeout(limit).send().await;
        let mut answer = asked.with_context(|| format!("asking {url}"))?;
        if !answer.status().is_success() {
            return told(&url, answer).await.map(|_| 0);
        }
        let mut bytes = 0;
        while let Some(piece) = answer.chunk().await.with_context(|| format!("reading {url}"))? {
            take(&piece).context("writing what came")?;
            bytes += piece.len() as u64;
        }
        Ok(bytes)
    }
}

/// The body of a 2xx; of another the error that says so.
async fn told(url: &str, answer: reqwest::Response) -> anyhow::Result<String> {
    let status = answer.status();
    let text = answer.text().await.with_context(|| format!("reading {url}"))?;
    if !status.is_success() {
        bail!("{url} answered {status}: {}", text.trim());
    }
    Ok(text)
}

/// `tollgate links list`: the running gateway's HSM links and breakers, as a table or as the API
/// gives them.
///
/// # Errors
/// See [`AdminClient`].
pub async fn list_links(access: &Access, json: bool) -> anyhow::Result<String> {
    let gateway = AdminClient::open(access)?;
    let mut answer = gateway.get("/v1/links").await?;
    answer["breakers"] = gateway.get("/v1/breakers").await?["breakers"].take();
    if json {
        return Ok(format!("{answer:#}\n"));
    }
    Ok(table(&answer))
}

fn table(answer: &Value) -> String {
    let mut table = String::new();
    let mut line = |cells: [&str; 4]| {
        let [first, second, third, rest] = cells;
        let text = format!("{first:<16} {second:<24} {third:<10} {rest}");
        // Words of tokens, billers and operators are among them: no terminal obeys one.
        table.extend(text.trim_end().chars().map(|c| if c.is_control() { ' ' } else { c }));
        table.push('\n');
    };
    line(["LINK", "WHAT", "STATE", "DETAIL"]);
    for link in list(&answer["links"]) {
        let name = word(&link["name"]);
        let state = if link["usable"] == true { "up" } else { "down" };
        let mut detail = format!("{}, clear PINs {}, ", word(&link["role"]), word(&link["mode"]));
        detail += &member(link);
        if link["distrusted"] == true {
            detail += ", keys not trusted";
        }
        line([name, "link", state, &detail]);
        for worker in list(&link["workers"]) {
            let state = match (worker["ready"] == true, worker["latched"] == true) {
                (true, _) => "ready",
                (false, true) => "latched",
                (false, false) => "away",
            };
            let what = format!("worker {}", worker["pid"].as_u64().unwrap_or_default());
            let counts = format!(
                "{} in flight, {} restarts  {}{}",
                worker["in_flight"],
                worker["restarts"],
                word(&worker["token"]),
                word(&worker["trouble"]),
            );
            line([name, &what, state, &counts]);
        }
        for recipe in list(&link["recipes"]) {
            let (what, mode) = (word(&recipe["operation"]), word(&recipe["mode"]));
            line([name, what, mode, word(&recipe["calls"])]);
        }
    }
    for backend in list(&answer["backends"]) {
        let state = if backend["usable"] == true { "up" } else { "down" };
        let detail = format!("{}, {}", word(&backend["role"]), member(backend));
        line([word(&backend["biller"]), word(&backend["url"]), state, &detail]);
    }
    for breaker in list(&answer["breakers"]) {
        let (name, state) = (word(&breaker["name"]), word(&breaker["state"]));
        line([name, "breaker", state, &why(breaker)]);
    }
    table
}

/// What every member of a link tells of itself.
fn member(of: &Value) -> String {
    let mut text = format!(
        "{} of {} running, {:.1} ms",
        of["running"],
        of["limit"],
        of["typical_ms"].as_f64().unwrap_or_default(),
    );
    if let Some(trouble) = of["heartbeat"]["trouble"].as_str() {
        text += &format!(", heartbeat: {trouble}");
    }
    text
}

/// What an operator orders a breaker to do.
#[derive(Debug, Clone, clap::Args)]
pub struct BreakerOrder {
    /// The breaker, as `tollgate links list` names it.
    pub name: String,
    /// Why.
    #[arg(long)]
    pub reason: String,
    /// Whom to ask.
    #[command(flatten)]
    pub access: Access,
}

/// `tollgate links force-open`, `disable` or `reset`: one line on how the breaker is then.
///
/// # Errors
/// A name that is none; see [`AdminClient`].
pub async fn order_breaker(order: &BreakerOrder, what: &str) -> anyhow::Result<String> {
    let BreakerOrder { name, reason, access } = order;
    // A name that is none must not become another path.
    let plain = |c: u8| c.is_ascii_lowercase() || c.is_ascii_digit() || matches!(c, b'.' | b'-');
    ensure!(!name.is_empty() && name.bytes().all(plain), "{name:?} is no name of a breaker");
    ensure!(!name.bytes().all(|c| c == b'.'), "{name:?} is no name of a breaker");
    let path = format!("/v1/breakers/{name}/{what}");
    let breaker = AdminClient::open(access)?.post(&path, &json!({ "reason": reason })).await?;
    if breaker.is_null() {
        return Ok(format!("{name} is no breaker any more; its order is ended\n"));
    }
    Ok(format!("{name} is {}\n", word(&breaker["state"])))
}

/// `tollgate queue acknowledge-rollback`: one line on what leaves again.
///
/// # Errors
/// See [`AdminClient`].
pub async fn acknowledge_rollback(access: &Access, reason: &str) -> anyhow::Result<String> {
    let path = "/v1/queue/rollback/acknowledge";
    let done = AdminClient::open(access)?.post(path, &json!({ "reason": reason })).await?;
    if done["rolled_back"] != true {
        return Ok("the database was not rolled back; nothing waited\n".to_owned());
    }
    let payments = &done["payments"];
    Ok(format!("{payments} open payments count as possibly sent; forwarding goes on\n"))
}

/// Why a breaker is as it is, and when it asks again.
fn why(breaker: &Value) -> String {
    let mut parts = Vec::new();
    let forced = &breaker["forced"];
    if forced.is_object() {
        parts.push(format!("by {}: {}", word(&forced["by"]), word(&forced["reason"])));
    } else if let Some(reason) = breaker["reason"].as_str() {
        parts.push(reason.to_owned());
    }
    parts.extend(breaker["detail"].as_str().map(str::to_owned));
    parts.extend(breaker["next_probe_s"].as_u64().map(|wait| format!("next probe in {wait} s")));
    parts.join(", ")
}

fn list(value: &Value) -> &[Value] {
    value.as_array().map_or(&[], Vec::as_slice)
}

/// Empty for what is no text.
fn word(value: &Value) -> &str {
    value.as_str().unwrap_or_default()
}

fn parse(path: &str, text: &str) -> anyhow::Result<Value> {
    if text.is_empty() {
        return Ok(Value::Null);
    }
    serde_json::from_str(text).with_context(|| format!("{path} answered what is no JSON"))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_a_token_or_an_operator_says_moves_no_cursor() {
        let evil = "\u{1b}[2Jgone\r\nprimary link up\u{9b}";
        let answer = json!({
            "links": [{
                "name": "primary",
                "heartbeat": { "trouble": evil },
                "workers": [{ "trouble": evil, "token": evil }],
            }],
            "breakers": [{ "name": "hsm", "forced": { "by": evil, "reason": evil } }],
        });

        let table = table(&answer);

        assert_eq!(table.lines().count(), 4, "{table:?}");
        let controls = table.chars().filter(|c| c.is_control() && *c != '\n');
        assert_eq!(controls.count(), 0, "{table:?}");
        assert!(table.contains("heartbeat:  [2Jgone"), "{table:?}");
    }
}
