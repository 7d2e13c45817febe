//! What the configuration says of security, and who may do what. Of secrets the paths, never the contents.

use std::path::Path;

use hsm_adapter::client::LinkOptions;
use hsm_adapter::worker::Probes;
use serde_json::{Value, json};

use crate::admin::ACCESS;
use crate::checkpoint_key::digest_of;
use crate::config::{BillerConfig, Config, NamedLink, PostgresConfig, Role};

/// `configuration.json`.
pub(super) fn configuration(path: &Path, config: &Config) -> Value {
    let digest = |path: &Path| digest_of(path).map(|hash| hash.to_string()).ok();
    // The values hold as they are told here, overrides included.
    let overrides: Vec<String> = std::env::vars_os()
        .filter_map(|(name, _)| name.into_string().ok())
        .filter(|name| name.starts_with("TOLLGATE__"))
        .collect();
    let Config { environment, replica, data, admin, tls, limits, officers, queue, audit, .. } =
        config;
    json!({
        "file": { "path": path, "sha256": digest(path), "overridden_by": overrides },
        "program": {
            "version": env!("CARGO_PKG_VERSION"),
            "target": env!("TOLLGATE_TARGET"),
            "sha256": digest(Path::new("/proc/self/exe")),
        },
        "environment": environment,
        "replica": replica,
        "request_ms_max": config.request_ms_max,
        "data": data,
        "admin": admin,
        "private_keys": { "data": tls.data.key, "admin": tls.admin.key },
        "limits": limits,
        "officers": officers,
        "queue": queue,
        "audit": audit,
        "store": store(config),
        "hsm": hsm(config),
        "billers": config.biller.iter().map(biller).collect::<Vec<_>>(),
    })
}

/// `roles.json`: the whole matrix, for the review of access.
pub(super) fn roles(config: &Config) -> Value {
    let documented = crate::routes::openapi();
    let data: Vec<&String> = documented.paths.paths.keys().collect();
    json!({
        "clients": config.client,
        "admin_routes": ACCESS,
        "data_routes": { "paths": data, "roles": [Role::Client] },
        "rule": "A valid certificate without an entry has no rights; on the data listener a client may use \
                 what its grants name, and nothing else.",
    })
}

fn hsm(config: &Config) -> Value {
    let hsm = &config.hsm;
    let links = match hsm.links() {
        Ok(links) => links.iter().map(link).collect(),
        Err(why) => vec![json!({ "error": why })],
    };
    let waiver = hsm.in_worker_waiver.as_ref();
    json!({
        "links": links,
        "in_worker_waiver": waiver.map(|waiver| json!({
            "name": waiver.name,
            "reason": waiver.reason,
            "until": waiver.until,
        })),
        "queue_kek": hsm.queue_kek,
        "lint_s": hsm.lint_s,
    })
}

fn link(NamedLink { role, options }: &NamedLink) -> Value {
    let LinkOptions { name, program, module, module_sha256, token_label, .. } = options;
    json!({
        "name": name,
        "role": role.name(),
        "worker": program,
        "module": module,
        "module_sha256": module_sha256,
        "token_label": token_label,
        "pin_file": options.pin_file,
        "key_register": options.keys,
        // Names alone: a vendor may want a secret in its environment.
        "environment": options.environment.keys().collect::<Vec<_>>(),
        "accepted_probes": options.accepted_probes,
        "probes_enforced": matches!(options.probes, Probes::Enforce),
        "clear_pins_in_worker_allowed": options.in_worker,
        "workers": options.workers,
        "sessions": options.sessions,
    })
}

fn biller(config: &BillerConfig) -> Value {
    let BillerConfig { name, mac_key, pin_key, pin_format, store, store_pin, .. } = config;
    json!({
        "name": name,
        "urls": config.urls.iter().map(|url| without_user(url)).collect::<Vec<_>>(),
        "backup_urls": config.backup_urls.iter().map(|url| without_user(url)).collect::<Vec<_>>(),
        "private_key": config.key,
        "mac_key": mac_key,
        "pin_key": pin_key,
        "pin_format": pin_format,
        "store": store,
        "store_pin": store_pin,
        "deduplicates": config.deduplicates,
        "enquiry": config.enquiry,
        "reversal": config.reversal,
    })
}

fn store(config: &Config) -> Value {
    let postgres = config.store.postgres.as_ref();
    json!({
        "sqlite": config.store.path,
        "postgres": postgres.map(|PostgresConfig { host, port, database, user, .. }| json!({
            "host": host,
            "port": port,
            "database": database,
            "user": user,
        })),
        "password_file": postgres.and_then(|postgres| postgres.password_file.as_ref()),
        "private_key": postgres.and_then(|postgres| postgres.key.as_ref()),
    })
}

/// A URL without what stands before its host.
fn without_user(url: &str) -> String {
    let Some((scheme, rest)) = url.split_once("://") else { return url.into() };
    let end = rest.find('/').unwrap_or(rest.len());
    let (host, path) = rest.split_at(end);
    format!("{scheme}://{}{path}", host.rsplit('@').next().unwrap_or(host))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_url_is_told_without_its_user() {
        for (url, told) in [
            ("https://host:8443/", "https://host:8443/"),
            ("https://user:pass@host/", "https://host/"),
            ("https://host/a@b/", "https://host/a@b/"),
        ] {
            assert_eq!(without_user(url), told);
        }
    }
}
