//! The acquirer's client of the data API, over mutual TLS.
//!
//! Typed calls answer what the contract promises; `pay`, `payment` and `send` answer the exact
//! bytes, for tests that look at statuses, headers and MACs.

use std::fmt;
use std::path::Path;

use bytes::Bytes;
use reqwest::header::{CONTENT_TYPE, HeaderMap};
use reqwest::{Method, StatusCode};
use serde::Deserialize;
use serde::de::DeserializeOwned;
use serde_json::{Value, json};

use super::Acquirer;
use crate::mtls;

/// A client with one certificate, speaking to one gateway.
#[derive(Debug, Clone)]
pub struct Client {
    http: reqwest::Client,
    base: String,
}

/// One answer, byte for byte.
#[derive(Debug, Clone)]
#[expect(missing_docs, reason = "the three parts of an HTTP answer")]
pub struct Answer {
    pub status: StatusCode,
    pub headers: HeaderMap,
    pub body: Bytes,
}

/// Why a typed call has no result.
#[derive(Debug)]
pub enum Failure {
    /// No answer, or not all of it.
    Transport(reqwest::Error),
    /// An answer other than 200: a problem document, as a rule.
    Refused(Answer),
    /// A 200 whose body is not what the contract promises.
    Form(serde_json::Error),
}

/// One side of a translation.
#[derive(Debug, Clone, Copy)]
pub struct PinSide<'a> {
    /// Key label.
    pub key: &'a str,
    /// `iso0`, `iso1`, `iso3`, `iso4`, or whatever a test of refusals needs.
    pub format: &'a str,
    /// Key serial number of a DUKPT key.
    pub ksn: Option<&'a str>,
}

/// What `/v1/pin/translate` answers.
#[derive(Debug, Clone, PartialEq, Eq, Deserialize)]
#[serde(deny_unknown_fields)]
#[expect(missing_docs, reason = "the fields of the contract")]
pub struct Translated {
    pub pin_block: String,
    pub format: String,
    pub key: String,
    pub key_version: u32,
    #[serde(default)]
    pub ksn: Option<String>,
    #[serde(default)]
    pub to_ksn: Option<String>,
}

/// What `/v1/mac/generate` answers.
#[derive(Debug, Clone, PartialEq, Eq, Deserialize)]
#[serde(deny_unknown_fields)]
#[expect(missing_docs, reason = "the fields of the contract")]
pub struct Mac {
    pub mac: String,
    pub algorithm: String,
    pub key_version: u32,
}

impl Client {
    /// Shows `<name>.crt` of the folder to the gateway at `base`, `https://127.0.0.1:8443`.
    ///
    /// # Errors
    /// A PEM file that cannot be used.
    pub fn new(pki: &Path, name: &str, base: &str) -> anyhow::Result<Self> {
        let base = base.trim_end_matches('/').to_owned();
        Ok(Self { http: mtls::http_client(pki, name)?, base })
    }

    /// POST /v1/pin/translate.
    ///
    /// # Errors
    /// [`Failure`].
    pub async fn translate(
        &self,
        pan: &str,
        pin_block: &str,
        from: PinSide<'_>,
        to: PinSide<'_>,
    ) -> Result<Translated, Failure> {
        let body = json!({"pan": pan, "pin_block": pin_block,
            "from": from.to_json(), "to": to.to_json()});
        self.ask("/v1/pin/translate", &body).await
    }

    /// POST /v1/mac/generate; the key's own length.
    ///
    /// # Errors
    /// [`Failure`].
    pub async fn generate_mac(&self, key: &str, message: &[u8]) -> Result<Mac, Failure> {
        let body = json!({"key": key, "message": hex::encode_upper(message)});
        self.ask("/v1/mac/generate", &body).await
    }

    /// POST /v1/mac/verify.
    ///
    /// # Errors
    /// [`Failure`].
    pub async fn verify_mac(&self, key: &str, message: &[u8], mac: &str) -> Result<bool, Failure> {
        #[derive(Deserialize)]
        #[serde(deny_unknown_fields)]
        struct Verified {
            verified: bool,
        }
        let body = json!({"key": key, "message": hex::encode_upper(message), "mac": mac});
        self.ask("/v1/mac/verify", &body).await.map(|Verified { verified }| verified)
    }

    /// POST /v1/payments under the acquirer's MAC. The idempotency key goes in its quotes.
    ///
    /// # Errors
    /// No answer, or not all of it.
    pub async fn pay(
        &self,
        acquirer: &Acquirer,
        idempotency_key: &str,
        body: Vec<u8>,
    ) -> Result<Answer, reqwest::Error> {
        let (quoted, mac) = (format!("\"{idempotency_key}\""), acquirer.mac_header(&body));
        let headers = [("Idempotency-Key", quoted.as_str()), ("Tollgate-Mac", mac.as_str())];
        self.send(Method::POST, "/v1/payments", &headers, body).await
    }

    /// GET /v1/payments/{id}.
    ///
    /// # Errors
    /// No answer, or not all of it.
    pub async fn payment(&self, id: &str) -> Result<Answer, reqwest::Error> {
        self.send(Method::GET, &format!("/v1/payments/{id}"), &[], Vec::new()).await
    }

    /// Any request. A body that is not empty is announced as JSON unless a header says otherwise.
    ///
    /// # Errors
    /// No answer, or not all of it; a header that HTTP does not allow.
    pub async fn send(
        &self,
        method: Method,
        path: &str,
        headers: &[(&str, &str)],
        body: Vec<u8>,
    ) -> Result<Answer, reqwest::Error> {
        let mut request = self.http.request(method, format!("{}{path}", self.base));
        let typed = headers.iter().any(|(name, _)| name.eq_ignore_ascii_case("content-type"));
        if !body.is_empty() && !typed {
            request = request.header(CONTENT_TYPE, "application/json");
        }
        for (name, value) in headers {
            request = request.header(*name, *value);
        }
        let answer = request.body(body).send().await?;
        let (status, headers) = (answer.status(), answer.headers().clone());
        Ok(Answer { status, headers, body: answer.bytes().await? })
    }

    async fn ask<T: DeserializeOwned>(&self, path: &str, body: &Value) -> Result<T, Failure> {
        let bytes = body.to_string().into_bytes();
        let answer = self.send(Method::POST, path, &[], bytes).await;
        let answer = answer.map_err(Failure::Transport)?;
        if answer.status != StatusCode::OK {
            return Err(Failure::Refused(answer));
        }
        serde_json::from_slice(&answer.body).map_err(Failure::Form)
    }
}

impl Answer {
    /// The body as JSON; null when it is none.
    pub fn json(&self) -> Value {
        serde_json::from_slice(&self.body).unwrap_or_default()
    }

    /// A header's text.
    pub fn header(&self, name: &str) -> Option<&str> {
        self.headers.get(name)?.to_str().ok()
    }

    /// The slug of a problem document: `pin-block-refused`.
    pub fn slug(&self) -> Option<String> {
        let json = self.json();
        json["type"].as_str()?.strip_prefix("/problems/").map(str::to_owned)
    }
}

impl PinSide<'_> {
    fn to_json(self) -> Value {
        let mut side = json!({"key": self.key, "format": self.format});
        if let Some(ksn) = self.ksn {
            side["ksn"] = json!(ksn);
        }
        side
    }
}

impl Failure {
    /// The slug of the problem document, when the gateway answered one.
    pub fn slug(&self) -> Option<String> {
        match self {
            Self::Refused(answer) => answer.slug(),
            Self::Transport(_) | Self::Form(_) => None,
        }
    }
}

impl fmt::Display for Failure {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Transport(_) => f.write_str("the gateway did not answer"),
            Self::Refused(answer) => {
                let slug = answer.slug().unwrap_or_else(|| "no problem document".to_owned());
                write!(f, "the gateway answered {}: {slug}", answer.status)
            }
            Self::Form(_) => f.write_str("the gateway's answer is not in its form"),
        }
    }
}

impl std::error::Error for Failure {
    fn source(&self) -> Option<&(dyn std::error::Error + 'static)> {
        match self {
            Self::Transport(error) => Some(error),
            Self::Refused(_) => None,
            Self::Form(error) => Some(error),
        }
    }
}
