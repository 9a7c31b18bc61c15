//! The database's URL: hosts, user, TLS. What libpq and this program understand differently is refused, not guessed.

use std::{fmt, path::PathBuf, time::Duration};

use tokio_postgres::{
    Config,
    config::{Host, SslMode, TargetSessionAttrs},
};

/// How long a host may leave packets unacknowledged.
const SILENCE: Duration = Duration::from_secs(3);

/// Where the database is and how it is reached.
#[derive(Clone)]
pub struct Dsn {
    /// One of these is the primary.
    pub(super) hosts: Vec<Config>,
    pub(super) tls: Option<TlsFiles>,
}

/// What TLS to the database needs.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct TlsFiles {
    /// The authorities that sign the servers' certificates, PEM; the system's if absent.
    pub root_cert: Option<PathBuf>,
    /// Our certificate and its key, PEM, if the server asks for one.
    pub client: Option<(PathBuf, PathBuf)>,
}

/// What is wrong with a URL. Never has the URL in it, because a password may be.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum DsnError {
    /// It cannot be read as one.
    #[error(
        "not a URL like postgres://user@host1:5432,host2:5432/database?sslmode=verify-full: {0}"
    )]
    Unreadable(String),
    /// It names no host.
    #[error("it names no host")]
    NoHost,
    /// A kind of TLS that encrypts without knowing to whom.
    #[error(
        "sslmode={0} does not check who answers; use sslmode=verify-full with sslrootcert=FILE, or sslmode=disable on a network nobody else is on"
    )]
    UncheckedTls(String),
    /// A certificate without a key or the other way round.
    #[error("sslcert and sslkey belong together")]
    HalfACertificate,
    /// A session that cannot write.
    #[error(
        "target_session_attrs={0} makes no sense for a service that writes; leave it out or use read-write"
    )]
    Session(String),
}

impl fmt::Debug for Dsn {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Dsn").field("tls", &self.tls).finish_non_exhaustive()
    }
}

impl Dsn {
    /// Reads a URL; `password`, if given, counts and not the URL's.
    pub fn parse(url: &str, password: Option<&[u8]>) -> Result<Self, DsnError> {
        let (base, query) = url.split_once('?').unwrap_or((url, ""));
        let (mut kept, mut files, mut mode) = (Vec::new(), TlsFiles::default(), None);
        let (mut cert, mut key) = (None, None);
        for pair in query.split('&').filter(|pair| !pair.is_empty()) {
            let (name, value) = pair.split_once('=').unwrap_or((pair, ""));
            let decoded = percent_encoding::percent_decode_str(value).decode_utf8_lossy();
            match name {
                "sslmode" => mode = Some(decoded.into_owned()),
                "sslrootcert" => files.root_cert = Some(PathBuf::from(decoded.as_ref())),
                "sslcert" => cert = Some(PathBuf::from(decoded.as_ref())),
                "sslkey" => key = Some(PathBuf::from(decoded.as_ref())),
                "target_session_attrs" if decoded != "read-write" && decoded != "primary" => {
                    return Err(DsnError::Session(decoded.into_owned()));
                }
                "target_session_attrs" => {}
                _ => kept.push(pair),
            }
        }
        files.client = match (cert, key) {
            (None, None) => None,
            (Some(cert), Some(key)) => Some((cert, key)),
            _ => return Err(DsnError::HalfACertificate),
        };
        let text = format!("{base}?{}", kept.join("&"));
        let unreadable = |error: tokio_postgres::Error| {
            // its source says what, and never quotes more than a name
            let source = std::error::Error::source(&error).map(ToString::to_string);
            DsnError::Unreadable(source.unwrap_or_else(|| error.to_string()))
        };
        let mut config: Config = text.parse().map_err(unreadable)?;
        if let Some(password) = password {
            config.password(password);
        }
        let local = config.get_hosts().iter().all(is_local);
        let tls = match mode.as_deref() {
            Some("disable") => None,
            None if local => None,
            None | Some("verify-full") => Some(files),
            Some(other) => return Err(DsnError::UncheckedTls(other.to_owned())),
        };
        config.ssl_mode(if tls.is_some() { SslMode::Require } else { SslMode::Disable });
        config.target_session_attrs(TargetSessionAttrs::ReadWrite);
        Ok(Self { hosts: one_by_one(&config)?, tls })
    }
}

fn is_local(host: &Host) -> bool {
    match host {
        Host::Tcp(name) => {
            name == "localhost" || name.parse::<std::net::IpAddr>().is_ok_and(|ip| ip.is_loopback())
        }
        #[cfg(unix)]
        Host::Unix(_) => true,
    }
}

/// One configuration a host, so that one that hangs does not hold up the others.
fn one_by_one(config: &Config) -> Result<Vec<Config>, DsnError> {
    let (hosts, ports) = (config.get_hosts(), config.get_ports());
    if hosts.is_empty() {
        return Err(DsnError::NoHost);
    }
    let of = |(place, host): (usize, &Host)| {
        let mut one = Config::new();
        match host {
            Host::Tcp(name) => one.host(name),
            #[cfg(unix)]
            Host::Unix(path) => one.host_path(path),
        };
        // none, one for all, or one each
        let port = ports.get(place).or(ports.first().filter(|_| ports.len() == 1));
        one.port(port.copied().unwrap_or(5432));
        if let Some(user) = config.get_user() {
            one.user(user);
        }
        if let Some(password) = config.get_password() {
            one.password(password);
        }
        if let Some(name) = config.get_dbname() {
            one.dbname(name);
        }
        if let Some(options) = config.get_options() {
            one.options(options);
        }
        // a host that is gone without a word is noticed; one that is frozen only by our own deadlines
        one.tcp_user_timeout(SILENCE).keepalives_idle(2 * SILENCE).keepalives_interval(SILENCE / 3);
        one.application_name(config.get_application_name().unwrap_or("alipayplus-cancel"));
        one.ssl_mode(config.get_ssl_mode());
        one.channel_binding(config.get_channel_binding());
        one.target_session_attrs(TargetSessionAttrs::ReadWrite);
        one
    };
    Ok(hosts.iter().enumerate().map(of).collect())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn parsed(url: &str) -> Dsn {
        Dsn::parse(url, None).expect(url)
    }

    #[test]
    fn hosts_are_taken_apart_with_their_ports() {
        let dsn =
            parsed("postgres://u:p@a:1,b:2/db?target_session_attrs=read-write&sslmode=disable");
        let ports: Vec<_> = dsn.hosts.iter().map(|host| host.get_ports().to_vec()).collect();
        assert_eq!(ports, [[1], [2]]);
        assert_eq!(dsn.hosts[1].get_dbname(), Some("db"));
        assert_eq!(dsn.hosts[1].get_password(), Some(&b"p"[..]));
        assert_eq!(dsn.tls, None);
        assert!(!format!("{dsn:?}").contains('p'.to_string().repeat(2).as_str()));
    }

    #[test]
    fn tls_is_checked_or_absent_and_absent_only_nearby() {
        assert_eq!(parsed("postgres://u@localhost/db").tls, None);
        assert_eq!(parsed("postgres://u@127.0.0.1:5432/db").tls, None);
        assert_eq!(parsed("postgres://u@%2Frun%2Fpostgresql/db").tls, None);
        assert_eq!(parsed("postgres://u@db.example/db").tls, Some(TlsFiles::default()));
        let files =
            parsed("postgres://u@localhost/db?sslmode=verify-full&sslrootcert=%2Fca.pem").tls;
        assert_eq!(files.expect("tls").root_cert, Some(PathBuf::from("/ca.pem")));
        for mode in ["require", "prefer", "allow", "verify-ca"] {
            let refused = Dsn::parse(&format!("postgres://u@h/db?sslmode={mode}"), None);
            assert_eq!(refused.err(), Some(DsnError::UncheckedTls(mode.to_owned())));
        }
    }

    #[test]
    fn what_makes_no_sense_is_refused_without_the_password() {
        for url in [
            "postgres://u:hunter2@h:port/db",
            "postgres://u:hunter2@h/db?no_such_option=1",
            "postgres://u:hunter2@h/db?target_session_attrs=read-only",
            "postgres://u:hunter2@h/db?sslmode=verify-full&sslcert=a",
        ] {
            let error = Dsn::parse(url, None).expect_err(url).to_string();
            assert!(!error.contains("hunter2"), "{error}");
        }
    }
}
