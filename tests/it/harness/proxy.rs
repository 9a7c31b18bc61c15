//! A proxy between a service and PostgreSQL that cuts, holds or delays connections around their COMMITs, as dice say.
//!
//! It reads what the service sends as far as it must: a COMMIT is a simple query of its own.

use std::{
    io::{ErrorKind, Read as _, Write as _},
    net::{Shutdown, SocketAddr, TcpListener, TcpStream},
    sync::{
        Arc, Mutex, PoisonError,
        atomic::{AtomicBool, AtomicUsize, Ordering},
    },
    thread::{self, JoinHandle},
    time::Duration,
};

use rand::{Rng as _, SeedableRng as _, rngs::StdRng};

/// The message that commits.
const COMMIT: &[u8] = b"Q\0\0\0\x0bCOMMIT\0";
/// The server's word that it has.
const COMMITTED: &[u8] = b"C\0\0\0\x0bCOMMIT\0";

/// What happens to a COMMIT.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Fault {
    /// The connection ends before the server gets it.
    CutBefore,
    /// It is passed on, and the connection ends at once: it may have happened or not.
    CutAtOnce,
    /// It happens, and the connection ends instead of its answer.
    CutBehind,
    /// It happens, and its answer is late.
    Late,
    /// It happens, its answer never comes, and the connection stays.
    Silent,
}

pub const FAULTS: [Fault; 5] =
    [Fault::CutBefore, Fault::CutAtOnce, Fault::CutBehind, Fault::Late, Fault::Silent];

/// A proxy that runs, until it is dropped.
pub struct Proxy {
    address: SocketAddr,
    shared: Arc<Shared>,
    accepting: Option<JoinHandle<()>>,
}

struct Shared {
    to: SocketAddr,
    ends: AtomicBool,
    /// How often a COMMIT meets a fault, in thousandths.
    share: AtomicUsize,
    dice: Mutex<StdRng>,
    met: [AtomicUsize; FAULTS.len()],
    commits: AtomicUsize,
}

/// One connection, between its two directions.
struct Link {
    service: TcpStream,
    server: TcpStream,
    fault: Mutex<Option<Fault>>,
}

impl Link {
    fn cut(&self) {
        // one that is closed already is as good
        drop(self.service.shutdown(Shutdown::Both));
        drop(self.server.shutdown(Shutdown::Both));
    }

    fn fault(&self) -> Option<Fault> {
        *self.fault.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Proxy {
    /// In front of the database on this port; without faults at first.
    pub fn before(port: u16, seed: u64) -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").expect("a free port");
        let address = listener.local_addr().expect("it listens");
        let shared = Arc::new(Shared {
            to: SocketAddr::from(([127, 0, 0, 1], port)),
            ends: AtomicBool::new(false),
            share: AtomicUsize::new(0),
            dice: Mutex::new(StdRng::seed_from_u64(seed)),
            met: Default::default(),
            commits: AtomicUsize::new(0),
        });
        let of_thread = Arc::clone(&shared);
        let accepting = Some(thread::spawn(move || accept(&listener, &of_thread)));
        Self { address, shared, accepting }
    }

    /// The database's address by way of it.
    pub fn url(&self, url: &str) -> String {
        let (head, database) = url.rsplit_once('/').expect("a database");
        let (user, _) = head.rsplit_once('@').expect("a user");
        format!("{user}@{}/{database}", self.address)
    }

    /// From now on, how many of a thousand COMMITs meet a fault.
    pub fn fail(&self, of_a_thousand: usize) {
        self.shared.share.store(of_a_thousand, Ordering::SeqCst);
    }

    /// How many met each of [`FAULTS`].
    pub fn met(&self) -> [usize; FAULTS.len()] {
        std::array::from_fn(|nth| self.shared.met[nth].load(Ordering::SeqCst))
    }

    /// How many COMMITs it has seen.
    pub fn commits(&self) -> usize {
        self.shared.commits.load(Ordering::SeqCst)
    }
}

impl Drop for Proxy {
    fn drop(&mut self) {
        self.shared.ends.store(true, Ordering::SeqCst);
        drop(TcpStream::connect(self.address));
        if let Some(accepting) = self.accepting.take() {
            accepting.join().ok();
        }
    }
}

fn accept(listener: &TcpListener, shared: &Arc<Shared>) {
    for service in listener.incoming() {
        if shared.ends.load(Ordering::SeqCst) {
            return;
        }
        let Ok(service) = service else { continue };
        // a database that is down is a connection that ends
        let Ok(server) = TcpStream::connect(shared.to) else { continue };
        for socket in [&service, &server] {
            socket.set_nodelay(true).expect("a socket");
        }
        let link = Arc::new(Link { service, server, fault: Mutex::new(None) });
        for is_up in [true, false] {
            let (link, shared) = (Arc::clone(&link), Arc::clone(shared));
            // ends with its connection
            thread::spawn(move || {
                if is_up {
                    up(&link, &shared);
                } else {
                    down(&link);
                }
                link.cut();
            });
        }
    }
}

fn read(mut from: &TcpStream, bytes: &mut [u8]) -> Option<usize> {
    loop {
        match from.read(bytes) {
            Ok(0) => return None,
            Ok(length) => return Some(length),
            Err(error) if error.kind() == ErrorKind::Interrupted => {}
            Err(_) => return None,
        }
    }
}

fn has(bytes: &[u8], message: &[u8]) -> bool {
    bytes.windows(message.len()).any(|window| window == message)
}

/// From the service to the server.
fn up(link: &Link, shared: &Shared) {
    let mut bytes = vec![0; 64 * 1024];
    while let Some(length) = read(&link.service, &mut bytes) {
        let bytes = &bytes[..length];
        // the service writes a message in one piece; one that is torn meets no fault
        let fault = has(bytes, COMMIT).then(|| shared.throw()).flatten();
        *link.fault.lock().unwrap_or_else(PoisonError::into_inner) = fault;
        if fault == Some(Fault::CutBefore) || (&link.server).write_all(bytes).is_err() {
            return;
        }
        if fault == Some(Fault::CutAtOnce) {
            return;
        }
    }
}

/// From the server to the service.
fn down(link: &Link) {
    let mut bytes = vec![0; 64 * 1024];
    while let Some(length) = read(&link.server, &mut bytes) {
        let bytes = &bytes[..length];
        match link.fault() {
            Some(Fault::CutBehind) if has(bytes, COMMITTED) => return,
            // a lane must not wait for ever; whoever waits hears that it is unknown
            Some(Fault::Silent) => continue,
            Some(Fault::Late) => thread::sleep(Duration::from_millis(400)),
            _ => {}
        }
        if (&link.service).write_all(bytes).is_err() {
            return;
        }
    }
}

impl Shared {
    fn throw(&self) -> Option<Fault> {
        self.commits.fetch_add(1, Ordering::SeqCst);
        let share = self.share.load(Ordering::SeqCst);
        let mut dice = self.dice.lock().unwrap_or_else(PoisonError::into_inner);
        if dice.random_range(0..1_000) >= share {
            return None;
        }
        let nth = dice.random_range(0..FAULTS.len());
        self.met[nth].fetch_add(1, Ordering::SeqCst);
        Some(FAULTS[nth])
    }
}
