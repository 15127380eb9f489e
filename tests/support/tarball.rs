//! Tar streams byte by byte, also such as no writer would make.
#![allow(dead_code, clippy::unwrap_used, clippy::indexing_slicing)]

/// A tar stream under construction.
#[derive(Default, Clone)]
pub struct Tarball {
    bytes: Vec<u8>,
}

/// Fields of one header; everything else is zero.
#[derive(Clone)]
pub struct Fields {
    pub kind: u8,
    pub mode: u32,
    pub uid: u32,
    pub gid: u32,
    pub mtime: u64,
    /// What the header claims; the body follows as it is given.
    pub size: u64,
    pub link: Vec<u8>,
}

impl Fields {
    pub fn new(kind: u8) -> Self {
        let me = rustix::process::geteuid().as_raw();
        let group = rustix::process::getegid().as_raw();
        Self {
            kind,
            mode: if kind == b'5' { 0o755 } else { 0o644 },
            uid: me,
            gid: group,
            mtime: 1_700_000_000,
            size: 0,
            link: Vec::new(),
        }
    }
}

impl Tarball {
    pub fn new() -> Self {
        Self::default()
    }

    pub fn file(self, name: &str, body: &[u8]) -> Self {
        let fields = Fields {
            size: body.len() as u64,
            ..Fields::new(b'0')
        };
        self.raw(name.as_bytes(), &fields, body)
    }

    pub fn directory(self, name: &str) -> Self {
        self.raw(name.as_bytes(), &Fields::new(b'5'), b"")
    }

    pub fn symlink(self, name: &str, to: &str) -> Self {
        let fields = Fields {
            link: to.into(),
            ..Fields::new(b'2')
        };
        self.raw(name.as_bytes(), &fields, b"")
    }

    pub fn hard_link(self, name: &str, to: &str) -> Self {
        let fields = Fields {
            link: to.into(),
            ..Fields::new(b'1')
        };
        self.raw(name.as_bytes(), &fields, b"")
    }

    /// PAX records for the entry that follows.
    pub fn pax(self, records: &[(&str, &[u8])]) -> Self {
        let mut body = Vec::new();
        for (key, value) in records {
            let rest = key.len() + value.len() + 3;
            let mut length = rest + 1;
            while length != rest + length.to_string().len() {
                length = rest + length.to_string().len();
            }
            body.extend_from_slice(format!("{length} {key}=").as_bytes());
            body.extend_from_slice(value);
            body.push(b'\n');
        }
        let fields = Fields {
            size: body.len() as u64,
            ..Fields::new(b'x')
        };
        self.raw(b"PaxHeader", &fields, &body)
    }

    /// One header with whatever it says, the body, and padding.
    pub fn raw(mut self, name: &[u8], fields: &Fields, body: &[u8]) -> Self {
        let mut header = [0u8; 512];
        assert!(name.len() <= 100 && fields.link.len() <= 100);
        header[..name.len()].copy_from_slice(name);
        octal(&mut header[100..108], u64::from(fields.mode));
        octal(&mut header[108..116], u64::from(fields.uid));
        octal(&mut header[116..124], u64::from(fields.gid));
        octal(&mut header[124..136], fields.size);
        octal(&mut header[136..148], fields.mtime);
        header[156] = fields.kind;
        header[157..157 + fields.link.len()].copy_from_slice(&fields.link);
        header[257..265].copy_from_slice(b"ustar\x0000");
        header[148..156].fill(b' ');
        let sum: u64 = header.iter().map(|byte| u64::from(*byte)).sum();
        octal(&mut header[148..155], sum);
        self.bytes.extend_from_slice(&header);
        self.bytes.extend_from_slice(body);
        self.bytes.resize(self.bytes.len().next_multiple_of(512), 0);
        self
    }

    /// The stream with its end mark.
    pub fn end(mut self) -> Vec<u8> {
        self.bytes.resize(self.bytes.len() + 1024, 0);
        self.bytes
    }

    /// The stream as if its writer had died here.
    pub fn cut(self) -> Vec<u8> {
        self.bytes
    }
}

fn octal(field: &mut [u8], value: u64) {
    let text = format!("{value:0width$o}", width = field.len() - 1);
    field[..text.len()].copy_from_slice(text.as_bytes());
}
