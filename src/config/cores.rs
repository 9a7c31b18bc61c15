//! Where a bridge finds the core.

use std::{
    fmt,
    net::{IpAddr, Ipv6Addr},
    path::Path,
};

use super::{
    read::{Leaf, Refused, leaf, text},
    tree::{Value, quoted},
};

/// Where the core is.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Core {
    /// In this process, without a socket.
    InProcess,
    /// At these addresses; at least one.
    Remote(Vec<CoreAddress>),
}

/// A place of one core or, being a name with many addresses, of many.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct CoreAddress {
    /// Whether by TLS.
    pub tls: bool,
    /// A name or an address; of IPv6 without brackets.
    pub host: String,
    /// The port.
    pub port: u16,
}

impl CoreAddress {
    fn parse(url: &str) -> Result<Self, Refused> {
        let plain = url.strip_prefix("http://");
        let authority =
            plain.or_else(|| url.strip_prefix("https://")).ok_or(Refused::Unexpected)?;
        let authority = authority.strip_suffix('/').unwrap_or(authority);
        let (host, port) = authority.rsplit_once(':').ok_or(Refused::Unexpected)?;
        let v6 = host.strip_prefix('[').and_then(|host| host.strip_suffix(']'));
        let named = |host: &str| {
            let part = |b: u8| b.is_ascii_alphanumeric() || b"-._".contains(&b);
            !host.is_empty() && host.bytes().all(part)
        };
        let is_host = v6.map_or_else(|| named(host), |v6| v6.parse::<Ipv6Addr>().is_ok());
        let port = port.parse().ok().filter(|port| *port != 0 && is_host);
        let (host, port) = (v6.unwrap_or(host), port.ok_or(Refused::Unexpected)?);
        let is_here = host == "localhost"
            || host.parse().is_ok_and(|ip: IpAddr| ip.to_canonical().is_loopback());
        if plain.is_some() && !is_here {
            return Err(Refused::Because(
                "plain http is for a core on this machine alone, because whoever listens on the way reads tokens and \
                 may answer in the core's place: use https"
                    .to_owned(),
            ));
        }
        Ok(Self { tls: plain.is_none(), host: host.to_owned(), port })
    }
}

impl fmt::Display for CoreAddress {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { tls, host, port } = self;
        let scheme = if *tls { "https" } else { "http" };
        if host.contains(':') {
            return write!(f, "{scheme}://[{host}]:{port}");
        }
        write!(f, "{scheme}://{host}:{port}")
    }
}

impl Leaf for Core {
    const EXPECTED: &'static str = "\"in-process\", or the cores' addresses with commas between them, as \
         \"https://core-0:50051,https://core-1:50051\"";
    const SECRET: bool = true;

    fn parse(value: &Value, _: Option<&Path>) -> Result<Self, Refused> {
        match text(value)? {
            "in-process" => Ok(Self::InProcess),
            urls => {
                let cores: Vec<_> = urls
                    .split(',')
                    .map(|url| CoreAddress::parse(url.trim()))
                    .collect::<Result<_, _>>()?;
                let (tls, plain): (Vec<_>, Vec<_>) = cores.iter().partition(|core| core.tls);
                if !tls.is_empty() && !plain.is_empty() {
                    let text = "some are https and some are http: use one for all".to_owned();
                    return Err(Refused::Because(text));
                }
                Ok(Self::Remote(cores))
            }
        }
    }

    fn print(&self) -> String {
        match self {
            Self::InProcess => quoted("in-process"),
            Self::Remote(cores) => {
                let urls: Vec<_> = cores.iter().map(ToString::to_string).collect();
                quoted(&urls.join(","))
            }
        }
    }
}

leaf!(Core);
