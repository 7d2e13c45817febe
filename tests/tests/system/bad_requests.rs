//! What is malformed, unknown or not granted is refused exactly so, and never repeated: each body
//! carries a PAN and a PIN block that may come back in no answer and stand in no file.

use harness::acquirer::{Acquirer, Answer, Client, Payment};
use harness::world::{Wanted, World};
use reqwest::Method;
use serde_json::Value;

use crate::canary::Canaries;
use crate::wanted::{grant_macs, grant_translations, grants_of};

#[tokio::test]
async fn every_malformed_translation_is_refused_and_not_repeated() {
    let world = World::start().await.unwrap();

    refused_all(&world, malformed_translations()).await;
}

#[tokio::test]
async fn every_malformed_mac_order_is_refused_and_not_repeated() {
    let world = World::start().await.unwrap();

    refused_all(&world, malformed_macs()).await;
}

#[tokio::test]
async fn every_malformed_payment_is_refused_and_not_repeated() {
    let world = World::start().await.unwrap();

    refused_all(&world, malformed_payments()).await;

    let paid = world.billing_control().unwrap().ledger().await.unwrap();
    assert_eq!((paid.effects.len(), paid.requests), (1, 1), "the good one alone");
}

#[tokio::test]
async fn what_is_not_http_of_this_api_is_refused_and_not_repeated() {
    let world = World::start().await.unwrap();

    refused_all(&world, foreign_requests()).await;
}

#[tokio::test]
async fn what_is_not_granted_is_refused_and_not_repeated() {
    // The operator grants keys that are of another role: the token's side refuses them.
    let edit = |table: &mut toml::Table| {
        grants_of(table, "terminal-1").remove("payments");
        let grants = grants_of(table, "acquirer-a");
        grant_macs(grants, &["zpk.acquirer-a".into(), "pvk.issuer".into()]);
        let to = [("zpk.acquirer-a", ["iso0"].as_slice()), ("zak.acquirer-a", &["iso0"])];
        let from = [("zak.acquirer-a", ["iso0"].as_slice()), ("zpk.billing", &["iso0"])];
        grant_translations(grants, &from, &to);
        grant_translations(grants, &[("zpk.acquirer-a", &["iso0"])], &to);
    };
    let world = Wanted { edit: Some(Box::new(edit)), ..Wanted::default() };
    let world = World::start_as(world).await.unwrap();

    let answers = refused_all(&world, not_granted()).await;

    // Whoever asks for a key learns nothing of its being there.
    let mut forms: Vec<String> = answers.iter().map(form).collect();
    forms.sort();
    forms.dedup();
    assert_eq!(forms.len(), 1, "{forms:#?}");
}

#[tokio::test]
async fn a_message_of_64_kib_has_a_mac_and_one_byte_more_has_none() {
    let world = World::start().await.unwrap();
    let client = world.client("acquirer-a").unwrap();
    let message = vec![0x5A; 64 * 1024 + 1];

    let longest = client.generate_mac("zak.acquirer-a", &message[1..]).await.unwrap();
    let longer = client.generate_mac("zak.acquirer-a", &message).await.unwrap_err();

    assert_eq!(longest.mac, Acquirer::a().mac(&message[1..]));
    assert_eq!(longer.slug().as_deref(), Some("malformed-request"));
}

/// A request, and how it must be refused.
struct Bad {
    what: &'static str,
    client: &'static str,
    method: Method,
    path: String,
    headers: Vec<(&'static str, String)>,
    body: Vec<u8>,
    status: u16,
    slug: &'static str,
    /// The refusal's words, where they name a field.
    detail: Option<&'static str>,
}

impl Bad {
    fn post(what: &'static str, path: &str, body: impl Into<Vec<u8>>) -> Self {
        let (method, path, body) = (Method::POST, path.to_owned(), body.into());
        let (client, headers, detail) = ("acquirer-a", Vec::new(), None);
        Self {
            what,
            client,
            method,
            path,
            headers,
            body,
            status: 400,
            slug: "malformed-request",
            detail,
        }
    }

    fn naming(self, detail: &'static str) -> Self {
        Self { detail: Some(detail), ..self }
    }

    fn answered(self, status: u16, slug: &'static str) -> Self {
        Self { status, slug, ..self }
    }

    fn by(self, client: &'static str) -> Self {
        Self { client, ..self }
    }

    fn with(mut self, header: &'static str, value: impl Into<String>) -> Self {
        self.headers.push((header, value.into()));
        self
    }
}

/// Sends each, looks at each answer, and then at every file of the world.
async fn refused_all(world: &World, cases: Vec<Bad>) -> Vec<Answer> {
    let canaries = canaries();
    let mut answers = Vec::new();
    for bad in cases {
        let Bad { what, client, method, path, headers, body, status, slug, detail } = bad;
        let client = world.client(client).unwrap();
        let headers: Vec<_> = headers.iter().map(|(name, value)| (*name, value.as_str())).collect();

        let answer = client.send(method, &path, &headers, body).await;

        let answer = answer.unwrap_or_else(|error| panic!("{what}: {error:?}"));
        assert_eq!(
            (answer.status.as_u16(), answer.slug().as_deref()),
            (status, Some(slug)),
            "{what}"
        );
        assert_eq!(answer.header("content-type"), Some("application/problem+json"), "{what}");
        let json = answer.json();
        assert_eq!(json["status"], status, "{what}");
        assert_eq!(json["request_id"].as_str(), answer.header("x-request-id"), "{what}");
        let fields: Vec<_> = json.as_object().unwrap().keys().map(String::as_str).collect();
        let known = ["detail", "request_id", "status", "title", "type"];
        assert!(fields.iter().all(|field| known.contains(field)), "{what}: {fields:?}");
        if let Some(detail) = detail {
            assert_eq!(json["detail"], detail, "{what}");
        }
        let whole = format!("{:?}\n{}", answer.headers, String::from_utf8_lossy(&answer.body));
        assert!(canaries.found_in(whole.as_bytes()).is_empty(), "{what}: {whole}");
        answers.push(answer);
    }
    assert_unharmed(&world.client("acquirer-a").unwrap()).await;
    assert_eq!(canaries.found_under(world.dir()), [""; 0]);
    answers
}

fn malformed_translations() -> Vec<Bad> {
    let bad = |what, body: &str| Bad::post(what, "/v1/pin/translate", body);
    let edited = |what, from: &str, to: &str| {
        assert!(TRANSLATION.contains(from), "{what}: {from}");
        bad(what, &TRANSLATION.replacen(from, to, 1))
    };
    let whole = "the body is not one JSON object of this form";
    let mut cases = vec![
        bad("nothing", "").with("content-type", "application/json").naming(whole),
        bad("no JSON", PAN_AND_BLOCK).naming(whole),
        bad("a list", &format!("[{TRANSLATION}]")).naming(whole),
        bad("a number", PAN).naming(whole),
        bad("half an object", &TRANSLATION[..TRANSLATION.len() - 1]).naming(whole),
        bad("two objects", &TRANSLATION.repeat(2)).naming(whole),
        bad("text behind it", &format!("{TRANSLATION}{PAN}")).naming(whole),
        bad("a byte order mark", &format!("\u{feff}{TRANSLATION}")).naming(whole),
        edited("a name twice", r#"{"pan""#, r#"{"pan":"4556737586899855","pan""#).naming(whole),
        edited("a null", r#""4556737586899855""#, "null").naming(whole),
        edited("a list as PAN", r#""4556737586899855""#, r#"["4556737586899855"]"#)
            .naming("pan: must be a string"),
        edited("a fraction", r#""4556737586899855""#, "4556737586899855.5").naming(whole),
        edited("an escape that is none", "4556737586899855", r"4556737586899855\q").naming(whole),
        edited("a number as PAN", r#""4556737586899855""#, PAN).naming("pan: must be a string"),
        edited(
            "a text as key",
            r#"{"key":"zpk.acquirer-a","format":"iso0"}"#,
            r#""4556737586899855""#,
        )
        .naming("from: must be an object"),
        edited("an unknown field", r#"{"pan""#, r#"{"clear_pin":"4556737586899855","pan""#)
            .naming("unknown field clear_pin"),
        edited("a PAN as a field", r#"{"pan""#, r#"{"4556737586899855":"1","pan""#)
            .naming("unknown field"),
        edited("a field of a later issue", r#""iso0"},"#, r#""iso0","pan":"4556737586899855"},"#)
            .naming("unknown field from.pan"),
        edited("no hex", "DECAFBADC0FFEE42", "DECAFBADC0FFEE42zz").naming("pin_block: must be hex"),
        edited("half a byte", "DECAFBADC0FFEE42", "DECAFBADC0FFEE420")
            .naming("pin_block: must be hex"),
        edited("blanks in hex", "DECAFBADC0FFEE42", " DECAFBADC0FFEE42")
            .naming("pin_block: must be hex"),
        edited("a PAN with a letter", "4556737586899855", "4556737586899855x"),
        edited("a PAN with blanks", "4556737586899855", "4556737586899855 "),
        edited("a PAN of 7", "4556737586899855", "4556737"),
        edited("a PAN of 20", "4556737586899855", "45567375868998550000"),
        edited("other digits", "4556737586899855", "４556737586899855"),
        edited("format 2", "iso0", "iso2"),
        edited("a PAN as format", "iso0", PAN),
        edited("format in capitals", "iso0", "ISO0"),
        edited("a label with a blank", "zpk.acquirer-a", "zpk acquirer-a"),
        edited("a label in capitals", "zpk.acquirer-a", "ZPK.4556737586899855"),
        edited("no label", "zpk.acquirer-a", ""),
        edited("a version as text", r#""iso0"},"#, r#""iso0","version":"1"},"#)
            .naming("from.version: must be a whole number"),
        edited("a version that is none", r#""iso0"},"#, r#""iso0","version":4556737586899855},"#)
            .naming("from.version: must be a key version"),
    ];
    for (what, from, detail) in [
        ("no PAN", r#""pan":"4556737586899855","#, "missing field pan"),
        ("no block", r#""pin_block":"DECAFBADC0FFEE42","#, "missing field pin_block"),
        ("no key", r#""key":"zpk.acquirer-a","#, "missing field from.key"),
        ("no format", r#","format":"iso0""#, "missing field from.format"),
        ("no other side", r#","to":{"key":"zpk.billing","format":"iso0"}"#, "missing field to"),
    ] {
        cases.push(edited(what, from, "").naming(detail));
    }
    let not_utf8 = [TRANSLATION.as_bytes(), &[0xFF]].concat();
    cases.push(Bad::post("no UTF-8", "/v1/pin/translate", not_utf8).naming(whole));
    let deep = format!(r#"{}"{PAN}"{}"#, r#"{"pan":"#.repeat(200), "}".repeat(200));
    cases.push(bad("too deep", &deep).naming(whole));
    let many: String = (0..40).map(|at| format!(r#""f{at}":"{PAN}","#)).collect();
    cases.push(edited("too many fields", r#"{"pan""#, &format!(r#"{{{many}"pan""#)).naming(whole));
    let long = "DECAFBADC0FFEE42".repeat(9);
    cases.push(
        edited("a long block", "DECAFBADC0FFEE42", &long)
            .naming("pin_block: has more than 64 bytes"),
    );
    let longer = format!("{TRANSLATION}{}", " ".repeat(64 * 1024));
    cases.push(bad("a long body", &longer).naming("the body is too long or not complete"));
    cases.push(
        bad("a longer body", &format!("{TRANSLATION}{}", " ".repeat(400 * 1024)))
            .naming("the body is too long"),
    );
    cases
}

fn malformed_macs() -> Vec<Bad> {
    let mut cases = Vec::new();
    for (what, body, detail) in [
        ("no key", r#"{"message":"@"}"#, "missing field key"),
        ("no message", r#"{"key":"zak.acquirer-a"}"#, "missing field message"),
        ("no hex", r#"{"key":"zak.acquirer-a","message":"@x"}"#, "message: must be hex"),
        ("half a byte", r#"{"key":"zak.acquirer-a","message":"@0"}"#, "message: must be hex"),
        (
            "a length of 3",
            r#"{"key":"zak.acquirer-a","message":"@","length":3}"#,
            "length: must be 4 to 32 bytes",
        ),
        (
            "a length of 33",
            r#"{"key":"zak.acquirer-a","message":"@","length":33}"#,
            "length: must be 4 to 32 bytes",
        ),
        (
            "a length as text",
            r#"{"key":"zak.acquirer-a","message":"@","length":"8"}"#,
            "length: must be a whole number",
        ),
        (
            "a MAC too many",
            r#"{"key":"zak.acquirer-a","message":"@","mac":"@"}"#,
            "unknown field mac",
        ),
        (
            "an algorithm",
            r#"{"key":"zak.acquirer-a","message":"@","algorithm":"cmac"}"#,
            "unknown field algorithm",
        ),
        (
            "an empty message",
            r#"{"key":"zak.acquirer-a","message":""}"#,
            "message: is empty or longer than the key allows",
        ),
    ] {
        let body = body.replace('@', PAN_AND_BLOCK);
        cases.push(Bad::post(what, "/v1/mac/generate", body).naming(detail));
    }
    for (what, body, detail) in [
        ("no MAC", r#"{"key":"zak.acquirer-a","message":"@"}"#, "missing field mac"),
        (
            "a long MAC",
            r#"{"key":"zak.acquirer-a","message":"@","mac":"@@@@"}"#,
            "mac: has more than 32 bytes",
        ),
        ("no hex", r#"{"key":"zak.acquirer-a","message":"@","mac":"@x"}"#, "mac: must be hex"),
        (
            "a length",
            r#"{"key":"zak.acquirer-a","message":"@","mac":"@","length":8}"#,
            "unknown field length",
        ),
    ] {
        let body = body.replace('@', PAN_AND_BLOCK);
        cases.push(Bad::post(what, "/v1/mac/verify", body).naming(detail));
    }
    let long = PAN_AND_BLOCK.repeat(64 * 1024 / 16 + 1);
    let long = format!(r#"{{"key":"zak.acquirer-a","message":"{long}"}}"#);
    cases.push(
        Bad::post("too long", "/v1/mac/generate", long)
            .naming("message: has more than 65536 bytes"),
    );
    cases
}

fn malformed_payments() -> Vec<Bad> {
    let acquirer = Acquirer::a();
    let paying = |what, key: &str, body: &str| {
        let mac = acquirer.mac_header(body.as_bytes());
        Bad::post(what, "/v1/payments", body).with("idempotency-key", key).with("tollgate-mac", mac)
    };
    let edited = |what, from: &str, to: &str| {
        assert!(PAYMENT.contains(from), "{what}: {from}");
        paying(what, r#""bad-1""#, &PAYMENT.replacen(from, to, 1))
    };
    let key = "Idempotency-Key: one quoted string of 1 to 255 printable ASCII characters";
    let long = format!("\"{}\"", "k".repeat(256));
    let mac = acquirer.mac_header(PAYMENT.as_bytes());
    let signed = |what, mac: &str| {
        let bad = Bad::post(what, "/v1/payments", PAYMENT).with("idempotency-key", r#""bad-1""#);
        bad.with("tollgate-mac", mac).answered(422, "mac-refused")
    };
    vec![
        paying("a bare key", PAN, PAYMENT).naming(key),
        paying("an empty key", r#""""#, PAYMENT).naming(key),
        paying("a long key", &long, PAYMENT).naming(key),
        paying("two keys", r#""a""#, PAYMENT).with("idempotency-key", r#""b""#).naming(key),
        Bad::post("no key", "/v1/payments", PAYMENT).with("tollgate-mac", &mac).naming(key),
        Bad::post("no MAC", "/v1/payments", PAYMENT)
            .with("idempotency-key", r#""bad-1""#)
            .answered(422, "mac-refused"),
        signed("a MAC of other bytes", &acquirer.mac_header(b"other")),
        signed("a MAC without its key", mac.split_once(':').unwrap().1),
        signed("half a MAC", &mac[..mac.len() - 8]),
        signed("no hex", &format!("{mac}zz")),
        signed("another key", &mac.replace("acquirer-a", "acquirer-c")),
        signed("an empty MAC", "zak.acquirer-a:"),
        paying("no body", r#""bad-1""#, "")
            .with("content-type", "application/json")
            .answered(422, "mac-refused"),
        paying("no JSON", r#""bad-1""#, PAN_AND_BLOCK),
        edited("nothing to pay", "127000.00", "0"),
        edited("less than nothing", "127000.00", "-1"),
        edited("too fine", "127000.00", "1.001"),
        edited("too much", "127000.00", "1234567890123456"),
        edited("an exponent", "127000.00", "1e5"),
        edited("a number", r#""127000.00""#, "127000").naming("amount.value: must be a string"),
        edited("no currency", "IDR", "XYZ"),
        edited("a PAN as currency", "IDR", PAN),
        edited("no priority", r#""high""#, r#""urgent""#)
            .naming("priority: is low, normal, high or critical"),
        edited("a blank in a bill", r#""532""#, r#""5 32""#),
        edited("a quote in a bill", r#""532""#, r#""4556737586899855\"""#),
        edited("no customer", r#""customer_id":"c-1","#, "").naming("missing field customer_id"),
        edited("a block without its PAN", r#""pan":"4556737586899855","#, "")
            .naming("pan: is needed with a PIN block"),
        edited("a key without its block", r#""pin_block":"DECAFBADC0FFEE42","#, "")
            .naming("missing field pin_block"),
        edited("a block without its key", r#","pin":{"key":"zpk.acquirer-a","format":"iso0"}"#, "")
            .naming("unknown field pin_block"),
        edited("a clear PIN", r#""532""#, r#""532","clear_pin":"4556737586899855""#)
            .naming("unknown field clear_pin"),
        edited("a bad block", "DECAFBADC0FFEE42", "DECAFBADC0FFEE42")
            .answered(422, "pin-block-refused"),
        edited("an unknown biller", r#""pln""#, r#""nobody""#).answered(403, "not-allowed"),
        edited("an ungranted key", "zpk.acquirer-a", "zpk.acquirer-b").answered(403, "not-allowed"),
    ]
}

fn foreign_requests() -> Vec<Bad> {
    let post = |what| Bad::post(what, "/v1/pin/translate", TRANSLATION);
    let at = |what, method: Method, path: &str| {
        let bad = Bad { method, path: path.to_owned(), body: Vec::new(), ..post(what) };
        bad.answered(404, "not-found")
    };
    let media = "unsupported-media-type";
    let mut cases = vec![
        post("text").with("content-type", "text/plain").answered(415, media),
        post("a form")
            .with("content-type", "application/x-www-form-urlencoded")
            .answered(415, media),
        post("a problem").with("content-type", "application/problem+json").answered(415, media),
        post("a PAN as type").with("content-type", PAN).answered(415, media),
        Bad { body: Vec::new(), ..post("no type") }.answered(415, media),
        post("gzip").with("content-encoding", "gzip").answered(415, media),
        post("identity, then gzip").with("content-encoding", "identity, gzip").answered(415, media),
        at("no such path", Method::GET, "/v1/pin"),
        at("a PAN as path", Method::GET, &format!("/{PAN}")),
        at("a PAN in a path", Method::POST, &format!("/v1/pin/translate/{PAN}")),
        at("another case", Method::POST, "/v1/PIN/translate"),
        at("a slash more", Method::POST, "/v1/pin/translate/"),
        at("two slashes", Method::POST, "//v1/pin/translate"),
        at("a version to come", Method::POST, "/v2/pin/translate"),
        at("no payment", Method::GET, &format!("/v1/payments/{PAN}"))
            .answered(404, "unknown-payment"),
        at("nobody's payment", Method::GET, "/v1/payments/01890a5d-ac96-774b-bcce-b302099a8057")
            .answered(404, "unknown-payment"),
    ];
    for (method, path) in [
        (Method::GET, "/v1/pin/translate"),
        (Method::PUT, "/v1/mac/generate"),
        (Method::DELETE, "/v1/payments/01890a5d-ac96-774b-bcce-b302099a8057"),
        (Method::PATCH, "/v1/payments"),
        (Method::OPTIONS, "/v1/mac/verify"),
    ] {
        cases.push(at("another method", method, path).answered(405, "method-not-allowed"));
    }
    cases
}

fn not_granted() -> Vec<Bad> {
    let translating = |what, from: &str, to: &str| {
        assert!(TRANSLATION.contains(from), "{what}: {from}");
        Bad::post(what, "/v1/pin/translate", TRANSLATION.replacen(from, to, 1))
    };
    let mac = |what, key: &str| {
        let body = format!(r#"{{"key":"{key}","message":"{PAN_AND_BLOCK}"}}"#);
        Bad::post(what, "/v1/mac/generate", body)
    };
    let verifying = |what, key: &str| {
        let body = format!(r#"{{"key":"{key}","message":"{PAN_AND_BLOCK}","mac":"{BLOCK}"}}"#);
        Bad::post(what, "/v1/mac/verify", body)
    };
    let cases = [
        translating("an unknown key", "zpk.acquirer-a", "zpk.nobody"),
        translating("a PAN as key", "zpk.acquirer-a", PAN),
        translating("another's key", "zpk.acquirer-a", "zpk.acquirer-b"),
        translating("an unknown destination", "zpk.billing", "zpk.nobody"),
        translating(
            "an ungranted format",
            r#""zpk.billing","format":"iso0""#,
            r#""zpk.billing","format":"iso4""#,
        ),
        translating(
            "to format 1",
            r#""zpk.billing","format":"iso0""#,
            r#""zpk.billing","format":"iso1""#,
        ),
        translating("a MAC key, granted", "zpk.acquirer-a", "zak.acquirer-a"),
        translating("to a MAC key, granted", "zpk.billing", "zak.acquirer-a"),
        translating("an outbound key inbound, granted", "zpk.acquirer-a", "zpk.billing"),
        translating("an inbound key outbound, granted", "zpk.billing", "zpk.acquirer-a"),
        translating("the queue's key", "zpk.acquirer-a", "queue.kek"),
        translating("a version that is not", r#""iso0"},"#, r#""iso0","version":99},"#),
        translating("no grant", "zpk.acquirer-a", "zpk.acquirer-a").by("terminal-1"),
        translating("no client", "zpk.acquirer-a", "zpk.acquirer-a").by("operator"),
        mac("an unknown key", "zak.nobody"),
        mac("another's key", "zak.acquirer-b"),
        mac("the biller's key", "zak.billing"),
        mac("a PAN as key", PAN),
        mac("a zone PIN key, granted", "zpk.acquirer-a"),
        mac("a PVV key, granted", "pvk.issuer"),
        mac("no grant", "zak.acquirer-a").by("terminal-1"),
        mac("no client", "zak.acquirer-a").by("monitor"),
        verifying("an unknown key", "zak.nobody"),
        verifying("another's key", "zak.acquirer-b"),
        verifying("a zone PIN key, granted", "zpk.acquirer-a"),
        verifying("no grant", "zak.acquirer-a").by("terminal-1"),
        Bad::post("no payments", "/v1/payments", PAYMENT)
            .with("idempotency-key", r#""bad-1""#)
            .by("terminal-1"),
    ];
    cases.into_iter().map(|case| case.answered(403, "not-allowed")).collect()
}

/// Everything of an answer but the request's id and the time of day.
fn form(answer: &Answer) -> String {
    let mut body = answer.json();
    body["request_id"] = Value::Null;
    let names: Vec<_> = answer.headers.keys().map(|name| name.as_str()).collect();
    format!("{} {body} {names:?}", answer.status)
}

async fn assert_unharmed(client: &Client) {
    let acquirer = Acquirer::a();
    let body = acquirer.payment_body(&Payment::of("pln", "bill-1").by_card()).unwrap();

    let answer = client.pay(&acquirer, "unharmed", body).await.unwrap();

    assert_eq!(answer.json()["status"], "SUCCESS", "{answer:?}");
}

fn canaries() -> Canaries {
    Canaries::default().digits("pan", PAN).bytes("block", &hex::decode(BLOCK).unwrap())
}

const PAN: &str = "4556737586899855";
const BLOCK: &str = "DECAFBADC0FFEE42";
/// Both, as hex of 16 bytes.
const PAN_AND_BLOCK: &str = "4556737586899855DECAFBADC0FFEE42";
const TRANSLATION: &str = concat!(
    r#"{"pan":"4556737586899855","pin_block":"DECAFBADC0FFEE42","#,
    r#""from":{"key":"zpk.acquirer-a","format":"iso0"},"#,
    r#""to":{"key":"zpk.billing","format":"iso0"}}"#
);
const PAYMENT: &str = concat!(
    r#"{"biller":"pln","bill_id":"532","customer_id":"c-1","#,
    r#""amount":{"value":"127000.00","currency":"IDR"},"priority":"high","#,
    r#""pan":"4556737586899855","pin_block":"DECAFBADC0FFEE42","#,
    r#""pin":{"key":"zpk.acquirer-a","format":"iso0"}}"#
);
