//! `tollgate-pki`: makes and runs a private certificate authority in one directory.
#![forbid(unsafe_code)]

use std::net::IpAddr;
use std::path::PathBuf;
use std::process::ExitCode;

use clap::{Args, Parser, Subcommand};
use jiff::Timestamp;
use pki::{Authority, Index, Leaf, issue_demo};
use serde::Serialize;

/// Private certificate authority for demo and CI.
#[derive(Parser)]
#[command(version)]
struct Arguments {
    /// The directory of the authority.
    #[arg(long, global = true, default_value = ".", value_name = "DIR")]
    dir: PathBuf,
    /// Print JSON, not a table.
    #[arg(long, global = true)]
    json: bool,
    #[command(subcommand)]
    command: Command,
}

#[derive(Subcommand)]
enum Command {
    /// Make a root certificate and an empty revocation list.
    Init {
        /// The root's common name.
        #[arg(long, default_value = "Tollgate private CA")]
        common_name: String,
        /// Issue the certificates of the demo world too.
        #[arg(long)]
        demo: bool,
    },
    /// Make a key and a certificate: a server's (--dns, --ip), a client's (--uri), or both.
    Issue(Issue),
    /// Revoke a certificate and publish the list.
    Revoke {
        /// The serial number in hex, or the name: all its unexpired certificates.
        name_or_serial: String,
        /// How long the list lasts.
        #[arg(long, default_value_t = 7, value_parser = clap::value_parser!(u16).range(1..=365))]
        crl_days: u16,
    },
    /// Publish a fresh revocation list.
    Crl {
        /// How long the list lasts.
        #[arg(long, default_value_t = 7, value_parser = clap::value_parser!(u16).range(1..=365))]
        crl_days: u16,
    },
}

#[derive(Args)]
struct Issue {
    /// File name without ending, and common name.
    name: String,
    #[command(flatten)]
    purpose: Purpose,
    /// How long the certificate lasts.
    #[arg(long, default_value_t = 30, value_parser = clap::value_parser!(u16).range(1..=825))]
    days: u16,
}

#[derive(Args)]
#[group(required = true, multiple = true)]
struct Purpose {
    /// A DNS name of the server; may be repeated.
    #[arg(long)]
    dns: Vec<String>,
    /// An address of the server; may be repeated.
    #[arg(long)]
    ip: Vec<IpAddr>,
    /// The URI that the client is known by.
    #[arg(long)]
    uri: Option<String>,
}

fn main() -> ExitCode {
    match run(Arguments::parse()) {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("tollgate-pki: {error:#}");
            ExitCode::FAILURE
        }
    }
}

fn run(arguments: Arguments) -> anyhow::Result<()> {
    let dir = &arguments.dir;
    let report = match arguments.command {
        Command::Init { common_name, demo } => {
            let mut authority = Authority::create(dir, &common_name)?;
            if demo {
                issue_demo(&mut authority)?;
            }
            Report::new(authority.index()?, |_| true)
        }
        Command::Issue(order) => {
            let mut authority = Authority::open(dir)?;
            let Purpose { dns, ip, uri } = order.purpose;
            let leaf = match (dns.is_empty() && ip.is_empty(), uri) {
                (true, Some(uri)) => Leaf::client(uri),
                (false, Some(uri)) => Leaf::both(dns, ip, uri),
                (_, None) => Leaf::server(dns, ip),
            };
            let issued = authority.issue(&order.name, &leaf.lasting(order.days))?;
            Report::new(authority.index()?, |serial| serial == issued.serial)
        }
        Command::Revoke { name_or_serial, crl_days } => {
            let mut authority = Authority::open(dir)?.with_crl_days(crl_days);
            authority.revoke(&name_or_serial)?;
            let index = authority.index()?;
            let meant = index.find(&name_or_serial, Timestamp::now());
            Report::new(index, |serial| meant.iter().any(|one| one == serial))
        }
        Command::Crl { crl_days } => {
            let authority = Authority::open(dir)?.with_crl_days(crl_days);
            authority.write_crl()?;
            let index = authority.index()?;
            let revoked = index.certificates.clone();
            Report::new(index, |serial| revoked[serial].revoked_at.is_some())
        }
    };
    if arguments.json {
        println!("{}", serde_json::to_string_pretty(&report)?);
    } else {
        print!("{}", report.table());
    }
    Ok(())
}

/// The list as it stands, and the certificates that the command was about.
#[derive(Serialize)]
#[serde(transparent)]
struct Report(Index);

impl Report {
    fn new(mut index: Index, about: impl Fn(&str) -> bool) -> Self {
        index.certificates.retain(|serial, _| about(serial));
        Self(index)
    }

    fn table(&self) -> String {
        let head = ["NAME", "SERIAL", "NOT AFTER", "REVOKED", "URI"].map(str::to_owned);
        let mut rows = vec![head];
        for (serial, certificate) in &self.0.certificates {
            let revoked = certificate.revoked_at.map_or("-".into(), |at| at.to_string());
            let uri = certificate.uri.clone().unwrap_or("-".into());
            let not_after = certificate.not_after.to_string();
            rows.push([certificate.name.clone(), serial.clone(), not_after, revoked, uri]);
        }
        rows[1..].sort();
        let wide = |column: usize| rows.iter().map(|row| row[column].len()).max().unwrap_or(0);
        let widths = [0, 1, 2, 3].map(wide);
        let mut text = String::new();
        if rows.len() > 1 {
            for [name, serial, not_after, revoked, uri] in &rows {
                let [a, b, c, d] = widths;
                text += &format!("{name:a$}  {serial:b$}  {not_after:c$}  {revoked:d$}  {uri}\n");
            }
        }
        let crl = &self.0.crl;
        text + &format!("revocation list {}, next update {}\n", crl.number, crl.next_update)
    }
}
