//! The demo's `gateway.toml`, with the paths and ports of one world.

use std::path::Path;

use anyhow::Context as _;

use super::{Link, Ports};

/// The configuration as a table, so that a test can change any value of it.
pub(super) fn table(dir: &Path, ports: Ports, biller: u16) -> anyhow::Result<toml::Table> {
    let token = Link::Primary.token_directory(dir)?;
    let text = TEXT
        .replace("@DIR@", &dir.display().to_string())
        .replace("@TOKEN_LABEL@", Link::Primary.token_label())
        .replace("@MODULE@", &super::module()?.display().to_string())
        .replace("@TOKEN_CONF@", &token.configuration().display().to_string())
        .replace("@PIN_FILE@", &token.pin_file().display().to_string())
        .replace("@KEYS@", &token.key_register().display().to_string())
        .replace("@DATA@", &ports.data.to_string())
        .replace("@ADMIN@", &ports.admin.to_string())
        .replace("@BILLING@", &biller.to_string());
    toml::from_str(&text).context("the demo's configuration")
}

/// Puts the fault shim before the token.
pub(super) fn put_shim(table: &mut toml::Table, dir: &Path) -> anyhow::Result<()> {
    put_shim_into(hsm(table)?, Link::Primary, dir)
}

/// Adds the backup link. What it does not name is as in `[hsm]`.
pub(super) fn add_backup(table: &mut toml::Table, dir: &Path, shim: bool) -> anyhow::Result<()> {
    let token = Link::Backup.token_directory(dir)?;
    let configuration = token.configuration().display().to_string();
    let environment = toml::Table::from_iter([("SOFTHSM2_CONF".into(), configuration.into())]);
    let mut link = toml::Table::from_iter([
        ("name".into(), "backup".into()),
        ("role".into(), "backup".into()),
        ("module".into(), super::module()?.display().to_string().into()),
        ("token_label".into(), Link::Backup.token_label().into()),
        ("pin_file".into(), token.pin_file().display().to_string().into()),
        ("keys".into(), token.key_register().display().to_string().into()),
        ("environment".into(), environment.into()),
    ]);
    if shim {
        put_shim_into(&mut link, Link::Backup, dir)?;
    }
    hsm(table)?.insert("link".into(), vec![toml::Value::from(link)].into());
    Ok(())
}

/// Keeps the rows in a server's database and not in a file.
pub(super) fn put_postgres(table: &mut toml::Table, postgres: toml::Table) {
    table.insert(
        "store".into(),
        toml::Table::from_iter([("postgres".into(), postgres.into())]).into(),
    );
}

/// What a gateway beside another one must have for itself.
pub(super) fn move_to(table: &mut toml::Table, dir: &Path, ports: Ports) {
    table["data"]["listen"] = format!("127.0.0.1:{}", ports.data).into();
    table["admin"]["listen"] = format!("127.0.0.1:{}", ports.admin).into();
    table["audit"]["dir"] = dir.join("audit").display().to_string().into();
}

fn hsm(table: &mut toml::Table) -> anyhow::Result<&mut toml::Table> {
    table.get_mut("hsm").and_then(toml::Value::as_table_mut).context("no [hsm]")
}

fn put_shim_into(table: &mut toml::Table, link: Link, dir: &Path) -> anyhow::Result<()> {
    table.insert("module".into(), super::shim::path()?.display().to_string().into());
    let environment = table.get_mut("environment").and_then(toml::Value::as_table_mut);
    let environment = environment.context("no environment")?;
    for (name, path) in super::shim::environment(&link.shim_folder(dir))? {
        environment.insert(name.into(), path.display().to_string().into());
    }
    Ok(())
}

/// Limits are high enough for a load run; waits are short enough for a person who watches.
const TEXT: &str = r#"
environment = "demo"

[data]
listen = "127.0.0.1:@DATA@"
body_bytes_max = 163840

[admin]
listen = "127.0.0.1:@ADMIN@"

[tls.data]
certificate = "@DIR@/pki/gateway.crt"
key = "@DIR@/pki/gateway.key"
client_ca = "@DIR@/pki/ca.crt"
crl = "@DIR@/pki/crl.pem"

[tls.admin]
certificate = "@DIR@/pki/gateway.crt"
key = "@DIR@/pki/gateway.key"
client_ca = "@DIR@/pki/ca.crt"
crl = "@DIR@/pki/crl.pem"

[probe]
ca = "@DIR@/pki/ca.crt"
certificate = "@DIR@/pki/monitor.crt"
key = "@DIR@/pki/monitor.key"

[limits]
exempt_addresses = ["127.0.0.1"]
translate_per_minute = 10000000
verify_per_minute = 10000000
mac_per_minute = 10000000
payment_per_minute = 10000000
admin_per_minute = 10000000
pan_translations_per_hour = 10000000
pan_translations_per_day = 10000000
pan_failures_max = 1000000
client_verifies_per_minute = 10000000
client_verifies_per_hour = 10000000
malformed_blocks_per_minute = 10000000
mac_failures_per_day = 10000000
mac_failures_max = 10000000

[hsm]
module = "@MODULE@"
token_label = "@TOKEN_LABEL@"
pin_file = "@PIN_FILE@"
keys = "@KEYS@"
environment = { SOFTHSM2_CONF = "@TOKEN_CONF@" }
attempt_ms_max = 1000
lost_ms_max = 1500
# What SoftHSM does although it must not.
accepted_probes = ["check-value", "digest-key"]

[hsm.breaker]
open_ms = 500
open_ms_max = 2000

[store]
path = "@DIR@/data/tollgate.sqlite"

[queue]
rows_max = 10000
lease_s = 10

[audit]
dir = "@DIR@/audit"

[retry]
attempts = 3
wait_ms = 50
wait_ms_max = 500
total_ms_max = 2500

[[biller]]
name = "pln"
urls = ["https://127.0.0.1:@BILLING@/"]
ca = "@DIR@/pki/ca.crt"
certificate = "@DIR@/pki/tollgate.crt"
key = "@DIR@/pki/tollgate.key"
mac_key = "zak.billing"
pin_key = "zpk.billing-aes"
pin_format = "iso4"
store = true
store_pin = true
deduplicates = true
connect_ms_max = 1000
attempt_ms_max = 2000
breaker = { open_ms = 500, open_ms_max = 2000 }

[[biller]]
name = "pdam"
urls = ["https://127.0.0.1:@BILLING@/"]
ca = "@DIR@/pki/ca.crt"
certificate = "@DIR@/pki/tollgate.crt"
key = "@DIR@/pki/tollgate.key"
mac_key = "zak.billing"
pin_key = "zpk.billing"
pin_format = "iso0"
store = true
store_pin = false
deduplicates = true
connect_ms_max = 1000
attempt_ms_max = 2000
breaker = { open_ms = 500, open_ms_max = 2000 }

[[biller]]
name = "telkom"
urls = ["https://127.0.0.1:@BILLING@/"]
ca = "@DIR@/pki/ca.crt"
certificate = "@DIR@/pki/tollgate.crt"
key = "@DIR@/pki/tollgate.key"
mac_key = "zak.billing"
pin_key = "zpk.billing"
pin_format = "iso0"
store = false
deduplicates = true
connect_ms_max = 1000
attempt_ms_max = 2000
breaker = { open_ms = 500, open_ms_max = 2000 }

[[client]]
id = "acquirer-a"
uri = "spiffe://tollgate.test/acquirer-a"
roles = ["client"]
requests_per_minute = 10000000
burst = 1000000
concurrent = 10000

[client.grants]
mac_generate = ["zak.acquirer-a", "zak.acquirer-c", "zak.acquirer-d"]
mac_verify = ["zak.acquirer-a", "zak.acquirer-c", "zak.acquirer-d"]
payments = { mac_key = "zak.acquirer-a", billers = ["pln", "pdam", "telkom"] }

[[client.grants.verify]]
from = { key = "zpk.acquirer-a", formats = ["iso0", "iso1", "iso3"] }
with = ["pvk.issuer", "pvk.issuer-3624"]

[[client.grants.translate]]
from = { key = "zpk.acquirer-a", formats = ["iso0", "iso1", "iso3"] }
to = [
    { key = "zpk.billing", formats = ["iso0", "iso3"] },
    { key = "zpk.billing-aes", formats = ["iso4"] },
]

[[client]]
id = "acquirer-b"
uri = "spiffe://tollgate.test/acquirer-b"
roles = ["client"]
requests_per_minute = 10000000
burst = 1000000
concurrent = 10000

[client.grants]
mac_generate = ["zak.acquirer-b"]
mac_verify = ["zak.acquirer-b"]
payments = { mac_key = "zak.acquirer-b", billers = ["pln", "pdam", "telkom"] }

[[client.grants.translate]]
from = { key = "zpk.acquirer-b", formats = ["iso4"] }
to = [
    { key = "zpk.billing-aes", formats = ["iso4"] },
    { key = "zpk.billing", formats = ["iso0", "iso3"] },
]

[[client]]
id = "terminal-1"
uri = "spiffe://tollgate.test/terminal-1"
roles = ["client"]
requests_per_minute = 10000000
burst = 1000000
concurrent = 10000

[client.grants]
payments = { billers = ["pln", "pdam", "telkom"] }

[[client.grants.translate]]
from = { key = "bdk.terminals", formats = ["iso4"] }
to = [
    { key = "zpk.billing-aes", formats = ["iso4"] },
    { key = "zpk.billing", formats = ["iso0", "iso3"] },
]

[[client.grants.translate]]
from = { key = "bdk.terminals-legacy", formats = ["iso0"] }
to = [
    { key = "zpk.billing-aes", formats = ["iso4"] },
    { key = "zpk.billing", formats = ["iso0", "iso3"] },
]

[[client]]
id = "operator"
uri = "spiffe://tollgate.test/operator"
roles = ["operator"]

[[client]]
id = "operator-2"
uri = "spiffe://tollgate.test/operator-2"
roles = ["operator"]

[[client]]
id = "auditor"
uri = "spiffe://tollgate.test/auditor"
roles = ["auditor"]

[[client]]
id = "monitor"
uri = "spiffe://tollgate.test/monitor"
roles = ["monitor"]
requests_per_minute = 10000000
burst = 1000000

[[client]]
id = "key-officer"
uri = "spiffe://tollgate.test/key-officer"
roles = ["key-officer"]

[[client]]
id = "key-officer-2"
uri = "spiffe://tollgate.test/key-officer-2"
roles = ["key-officer"]
"#;
