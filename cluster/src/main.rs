//! `with-postgres COMMAND…`: runs a command with a PostgreSQL cluster around it, which its tests
//! share.

#![forbid(unsafe_code)]

use std::process::{Command, ExitCode};

use cluster::{Cluster, SHARED};

fn main() -> ExitCode {
    let mut words = std::env::args_os().skip(1);
    let Some(program) = words.next() else {
        eprintln!("with-postgres: which command? (with-postgres COMMAND [ARGUMENT…])");
        return ExitCode::from(2);
    };
    let cluster = match Cluster::start() {
        Ok(cluster) => cluster,
        Err(error) => {
            eprintln!("with-postgres: {error}");
            return ExitCode::FAILURE;
        }
    };
    let status = Command::new(program).args(words).env(SHARED, cluster.socket()).status();
    match status {
        Ok(status) => {
            ExitCode::from(status.code().and_then(|code| code.try_into().ok()).unwrap_or(1))
        }
        Err(error) => {
            eprintln!("with-postgres: {error}");
            ExitCode::FAILURE
        }
    }
}
