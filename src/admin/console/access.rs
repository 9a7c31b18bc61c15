//! Who may look at the console.

use std::net::IpAddr;

use axum::extract::Request;
use http::{HeaderName, HeaderValue, header};

use crate::listen::{Identity, Peer};

/// Who may look.
#[derive(Clone, Debug)]
pub enum Access {
    /// Whoever comes from this very machine, by one of its names.
    Local,
    /// Whom a proxy names that comes from one of these addresses.
    Proxy {
        /// The header that names the user.
        user_header: HeaderName,
        /// Where the proxy is.
        proxies: Vec<IpAddr>,
    },
    /// Whoever got through the handshake of TLS, which asks for a certificate.
    Certificate,
}

/// Longest name of a user.
const NAME_MAX: usize = 256;

impl Access {
    /// Who asks, if they may; else why not.
    pub(super) fn admit(&self, request: &Request) -> Result<String, &'static str> {
        let peer = request.extensions().get::<Peer>().map(|peer| peer.0.ip().to_canonical());
        match self {
            Self::Local => {
                if !peer.is_some_and(|peer| peer.is_loopback()) {
                    return Err(
                        "the console is shown to this machine alone (console.access = \"local\")",
                    );
                }
                // a proxy on this machine would let in whoever can reach it
                if PROXIED.iter().any(|name| request.headers().contains_key(*name)) {
                    return Err(
                        "this came through a proxy, which console.access = \"local\" does not \
                         allow: set console.access = \"proxy\" if it checks users",
                    );
                }
                // a page of another site that had its name point here must not read ours through a browser
                if !is_local(request.headers().get(header::HOST)) {
                    return Err(
                        "ask for it as localhost or 127.0.0.1 (console.access = \"local\")",
                    );
                }
                Ok("this machine".to_owned())
            }
            Self::Proxy { user_header, proxies } => {
                if !peer.is_some_and(|peer| proxies.iter().any(|it| it.to_canonical() == peer)) {
                    return Err("the console is shown through its proxy alone (console.proxies)");
                }
                // two of them would be a user who named himself and was not taken out
                let mut users = request.headers().get_all(user_header).iter();
                let (Some(user), None) = (users.next(), users.next()) else {
                    return Err("the proxy must name the user, once, in console.user_header");
                };
                let name = user.to_str().unwrap_or_default().trim();
                if name.is_empty() || name.len() > NAME_MAX {
                    return Err("the proxy must name the user in console.user_header");
                }
                Ok(name.to_owned())
            }
            Self::Certificate => {
                let name = request.extensions().get::<Identity>().map(|it| it.0.to_string());
                Ok(name.unwrap_or_else(|| "a certificate without a name".to_owned()))
            }
        }
    }
}

/// Headers that a proxy adds.
const PROXIED: [&str; 3] = ["forwarded", "x-forwarded-for", "via"];

fn is_local(host: Option<&HeaderValue>) -> bool {
    let Some(host) = host.and_then(|host| host.to_str().ok()) else { return false };
    let name = match host.strip_prefix('[').and_then(|rest| rest.split_once(']')) {
        Some((address, _)) => address,
        None => host.split(':').next().unwrap_or(host),
    };
    let address = name.parse::<IpAddr>().map(|address| address.to_canonical());
    name.eq_ignore_ascii_case("localhost") || address.is_ok_and(|address| address.is_loopback())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn request(peer: &str, headers: &[(&str, &str)]) -> Request {
        let mut request = Request::new(axum::body::Body::empty());
        request.extensions_mut().insert(Peer(peer.parse().unwrap()));
        for (name, value) in headers {
            let name: HeaderName = name.parse().unwrap();
            request.headers_mut().append(name, HeaderValue::from_str(value).unwrap());
        }
        request
    }

    #[test]
    fn local_is_this_machine_by_its_own_name_and_without_a_proxy() {
        let admits = |peer: &str, headers: &[(&str, &str)]| {
            Access::Local.admit(&request(peer, headers)).is_ok()
        };
        for host in ["localhost", "LOCALHOST:9090", "127.0.0.1:9090", "[::1]:9090", "127.1.2.3"] {
            assert!(admits("127.0.0.1:5", &[("host", host)]), "{host}");
            assert!(admits("[::1]:5", &[("host", host)]), "{host}");
            assert!(admits("[::ffff:127.0.0.1]:5", &[("host", host)]), "{host}");
            assert!(!admits("10.0.0.1:5", &[("host", host)]), "{host}");
        }
        for host in ["", "evil.example", "localhost.evil.example", "10.0.0.1", "127.0.0.1.nip.io"] {
            assert!(!admits("127.0.0.1:5", &[("host", host)]), "{host}");
        }
        assert!(!admits("127.0.0.1:5", &[]));
        for proxied in ["forwarded", "x-forwarded-for", "via"] {
            assert!(!admits("127.0.0.1:5", &[("host", "localhost"), (proxied, "x")]), "{proxied}");
        }
    }

    #[test]
    fn a_proxy_names_one_user_and_comes_from_where_it_is() {
        let access = Access::Proxy {
            user_header: HeaderName::from_static("x-user"),
            proxies: vec!["127.0.0.1".parse().unwrap(), "10.0.0.7".parse().unwrap()],
        };
        let who = |peer: &str, headers: &[(&str, &str)]| access.admit(&request(peer, headers)).ok();
        assert_eq!(who("10.0.0.7:1", &[("x-user", "ann@wallet")]).as_deref(), Some("ann@wallet"));
        assert_eq!(who("[::ffff:10.0.0.7]:1", &[("x-user", "a")]).as_deref(), Some("a"));
        assert_eq!(who("10.0.0.8:1", &[("x-user", "ann@wallet")]), None);
        assert_eq!(who("10.0.0.7:1", &[]), None);
        assert_eq!(who("10.0.0.7:1", &[("x-user", " ")]), None);
        assert_eq!(who("10.0.0.7:1", &[("x-user", "eve"), ("x-user", "ann")]), None);
        assert_eq!(who("10.0.0.7:1", &[("x-user", &"a".repeat(257))]), None);
    }
}
