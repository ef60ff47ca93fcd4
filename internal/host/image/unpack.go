package image

import (
	"archive/tar"
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"strconv"
	"strings"
	"time"

	"golang.org/x/sys/unix"

	"github.com/roosthq/roost/internal/fault"
)

const (
	// maxHoles bounds the sizes of all files together, holes included: a sentry maps the tree whole.
	maxHoles = 1 << 40
	// maxAttributes of one file: they must fit into one block of an ext4.
	maxAttributes = 3800

	xattrRecord = "SCHILY.xattr."
	// What the guest's export says of a file with holes (internal/guest/export).
	sparseSize = "ROOST.sparse.size"
	sparseMap  = "ROOST.sparse.map"
)

// unpacker makes a directory of a stream that a guest may have written as it likes. The directory is
// private: device nodes and programs that run as root are only files here.
type unpacker struct {
	ctx        context.Context //nolint:containedctx // of one run
	root       *beneath
	maxBytes   int64
	maxEntries int
	// entries, bytes written and sizes with holes, so far.
	entries        int
	written, sizes int64
	// newest time of a file, and the times of directories, which their entries change.
	newest   int64
	dirs     []dirTime
	buf      []byte
	progress func(bytes int64)
	told     time.Time
}

type dirTime struct {
	name string
	at   time.Time
}

func newUnpacker(ctx context.Context, root string, r FromTreeRequest) (*unpacker, error) {
	dir, err := openBeneath(root)
	if err != nil {
		return nil, err
	}
	u := &unpacker{ctx: ctx, root: dir, maxBytes: r.MaxBytes, maxEntries: r.MaxEntries, buf: make([]byte, 256<<10), told: time.Now()}
	if u.maxBytes == 0 {
		u.maxBytes = defaultMaxBytes
	}
	u.maxBytes += r.Source.Tree.SizeBytes
	if u.maxEntries == 0 {
		u.maxEntries = defaultMaxEntries
	}
	return u, nil
}

func (u *unpacker) close() error { return u.root.close() }

// run reads the stream to its end, which the reader must confirm: the tar's own end is not enough.
func (u *unpacker) run(stream io.Reader) error {
	in := &ending{from: stream}
	files := tar.NewReader(in)
	for {
		if err := u.ctx.Err(); err != nil {
			return err
		}
		h, err := files.Next()
		if errors.Is(err, io.EOF) {
			break
		}
		if err != nil {
			return fault.Wrap(unreadable(err), "read", "stream of files")
		}
		if err := u.entry(h, files); err != nil {
			return fail(err, "unpack", strconv.QuoteToASCII(h.Name))
		}
	}
	if err := in.rest(); err != nil {
		return fault.Wrap(err, "read", "stream of files")
	}
	return u.setDirTimes()
}

// unreadable gives what package tar says a kind.
func unreadable(err error) error {
	switch {
	case errors.Is(err, io.ErrUnexpectedEOF):
		return &fault.Error{Kind: fault.Unavailable, Err: errEarly}
	case errors.Is(err, tar.ErrHeader), errors.Is(err, tar.ErrFieldTooLong):
		return &fault.Error{Kind: fault.Invalid, Err: err}
	default:
		return err
	}
}

var errEarly = errors.New("it ended early")

func refuse(why string) error { return fault.New(fault.Invalid, "", "", why) }

// entry makes what the header says.
func (u *unpacker) entry(h *tar.Header, content io.Reader) error {
	if u.entries++; u.entries > u.maxEntries {
		return fault.New(fault.ResourceExhausted, "", "", fmt.Sprintf("there are more than %d files", u.maxEntries))
	}
	isDir := h.Typeflag == tar.TypeDir
	name, err := entryName(h.Name, isDir)
	if err != nil {
		return err
	}
	meta, err := u.metaOf(h)
	if err != nil {
		return err
	}
	dir, base, err := u.root.parent(name)
	if err != nil {
		return err
	}
	switch h.Typeflag {
	case tar.TypeDir:
		return u.directory(dir, base, name, meta)
	case tar.TypeReg:
		return u.file(dir, base, h, meta, content)
	case tar.TypeLink:
		return u.link(dir, base, h.Linkname)
	case tar.TypeSymlink:
		return u.symlink(dir, base, h.Linkname, meta)
	case tar.TypeChar, tar.TypeBlock, tar.TypeFifo:
		return u.node(dir, base, h, meta)
	default:
		return refuse(fmt.Sprintf("a file of kind %q", h.Typeflag))
	}
}

// entryName is a path beneath the root, "." for the root itself, or refused.
func entryName(name string, isDir bool) (string, error) {
	if isDir {
		name = strings.TrimSuffix(name, "/")
		if name == "." {
			return name, nil
		}
	}
	const longest, longestPart = 3500, 255 // with the store's own path before it within PATH_MAX
	switch {
	case len(name) > longest:
		return "", fault.New(fault.FailedPrecondition, "", "", fmt.Sprintf("its path is longer than %d bytes", longest))
	case strings.Contains(name, "\x00"):
		return "", refuse("a NUL in a name")
	}
	for part := range strings.SplitSeq(name, "/") {
		switch {
		case part == "" || part == "." || part == "..":
			return "", refuse("not a plain path beneath the root")
		case len(part) > longestPart:
			return "", refuse("a name is too long")
		}
	}
	return name, nil
}

// meta is what every file has.
type meta struct {
	mode       uint32
	uid, gid   int
	at         time.Time
	attributes map[string]string
}

func (u *unpacker) metaOf(h *tar.Header) (meta, error) {
	m := meta{mode: uint32(h.Mode & 0o7777), uid: h.Uid, gid: h.Gid, at: h.ModTime, attributes: map[string]string{}} //nolint:gosec // twelve bits
	const most = 1<<32 - 2
	if m.uid < 0 || m.gid < 0 || m.uid > most || m.gid > most {
		return m, refuse("an owner that cannot be")
	}
	// What an ext4 made by mke2fs can say.
	if sec := m.at.Unix(); sec < 0 || sec >= 1<<31-1 {
		m.at = time.Unix(min(max(sec, 0), 1<<31-2), 0)
	}
	size := 0
	for key, value := range h.PAXRecords {
		name, isAttribute := strings.CutPrefix(key, xattrRecord)
		switch {
		case strings.HasPrefix(key, "GNU.sparse."):
			return m, refuse("holes in a form that is not the export's")
		case !isAttribute:
			continue
		}
		name = strings.NewReplacer("%3D", "=", "%25", "%").Replace(name)
		if !keptAttribute(name) || len(name) > 255 || strings.Contains(name, "\x00") {
			return m, refuse("the attribute " + strconv.QuoteToASCII(name))
		}
		m.attributes[name] = value
		size += len(name) + len(value) + 32
	}
	if size > maxAttributes {
		return m, fault.New(fault.FailedPrecondition, "", "", "its attributes do not fit on a disk")
	}
	u.newest = max(u.newest, m.at.Unix()+1)
	return m, nil
}

func (u *unpacker) directory(dir int, base, name string, m meta) error {
	if name != "." {
		if err := unix.Mkdirat(dir, base, 0o700); err != nil {
			return twice(err)
		}
	}
	fd, err := unix.Openat(dir, base, unix.O_RDONLY|unix.O_DIRECTORY|unix.O_NOFOLLOW|unix.O_CLOEXEC, 0)
	if err != nil {
		return err
	}
	u.dirs = append(u.dirs, dirTime{name, m.at})
	return errors.Join(m.set(fd), unix.Close(fd))
}

// set gives an open file what it has but its time. Attributes come last: chown takes capabilities away.
func (m meta) set(fd int) error {
	if err := unix.Fchown(fd, m.uid, m.gid); err != nil {
		return err
	}
	if err := unix.Fchmod(fd, m.mode); err != nil {
		return err
	}
	for name, value := range m.attributes {
		if err := unix.Fsetxattr(fd, name, []byte(value), 0); err != nil {
			return noAttribute(name, err)
		}
	}
	return nil
}

func noAttribute(name string, err error) error {
	kind := fault.Internal
	switch {
	case errors.Is(err, unix.EINVAL):
		kind = fault.Invalid
	case errors.Is(err, unix.ENOTSUP):
		kind = fault.FailedPrecondition // of the host: its file system has none
	}
	return &fault.Error{Kind: kind, Op: "set attribute", Object: strconv.QuoteToASCII(name), Err: err}
}

// setDirTimes comes after everything else.
func (u *unpacker) setDirTimes() error {
	for _, d := range u.dirs {
		dir, base, err := u.root.parent(d.name)
		if err == nil {
			err = touch(dir, base, d.at)
		}
		if err != nil {
			return fault.Wrap(err, "set time of", strconv.QuoteToASCII(d.name))
		}
	}
	return nil
}

func touch(dir int, base string, at time.Time) error {
	spec := unix.NsecToTimespec(at.UnixNano())
	return unix.UtimesNanoAt(dir, base, []unix.Timespec{spec, spec}, unix.AT_SYMLINK_NOFOLLOW)
}

func (u *unpacker) link(dir int, base, target string) error {
	target, err := entryName(target, false)
	if err != nil {
		return err
	}
	// The look-up of the target must not close what is kept of the other's directory.
	from, old, err := u.root.open(target)
	if err != nil {
		return err
	}
	err = unix.Linkat(from, old, dir, base, 0)
	if errors.Is(err, unix.ENOENT) || errors.Is(err, unix.EPERM) {
		err = refuse("a link to what is no file before it")
	}
	return errors.Join(twice(err), unix.Close(from))
}

func (u *unpacker) symlink(dir int, base, target string, m meta) error {
	if target == "" || len(target) >= unix.PathMax || strings.Contains(target, "\x00") {
		return refuse("a symlink to nowhere")
	}
	if err := unix.Symlinkat(target, dir, base); err != nil {
		return twice(err)
	}
	if err := unix.Fchownat(dir, base, m.uid, m.gid, unix.AT_SYMLINK_NOFOLLOW); err != nil {
		return err
	}
	return touch(dir, base, m.at)
}

func (u *unpacker) node(dir int, base string, h *tar.Header, m meta) error {
	kind, dev := uint32(unix.S_IFIFO), uint64(0)
	if h.Typeflag != tar.TypeFifo {
		if h.Devmajor < 0 || h.Devmajor >= 1<<12 || h.Devminor < 0 || h.Devminor >= 1<<20 {
			return refuse("a device that cannot be")
		}
		kind, dev = unix.S_IFCHR, unix.Mkdev(uint32(h.Devmajor), uint32(h.Devminor))
		if h.Typeflag == tar.TypeBlock {
			kind = unix.S_IFBLK
		}
	}
	if err := unix.Mknodat(dir, base, kind|0o600, int(dev)); err != nil { //nolint:gosec // 32 bits
		return twice(err)
	}
	if err := unix.Fchownat(dir, base, m.uid, m.gid, unix.AT_SYMLINK_NOFOLLOW); err != nil {
		return err
	}
	// It follows links, and this is none: it was made just now, where nobody else can write.
	if err := unix.Fchmodat(dir, base, m.mode, 0); err != nil {
		return err
	}
	return touch(dir, base, m.at)
}

// twice: nothing that is there is ever written again.
func twice(err error) error {
	if errors.Is(err, unix.EEXIST) {
		return refuse("the name comes twice")
	}
	return err
}

// ending knows whether a stream was read to its own end, and not only to the tar's.
type ending struct {
	from io.Reader
	at   error
	over bool
}

// Read keeps an end that comes with the last bytes for the next call.
func (e *ending) Read(p []byte) (int, error) {
	if e.at != nil {
		e.over = true
		return 0, e.at
	}
	n, err := e.from.Read(p)
	if n > 0 && err != nil {
		e.at, err = err, nil
	}
	if err != nil {
		e.at, e.over = err, true
	}
	return n, err
}

// rest reads what is behind the tar: its padding, and whether the sender says that it was whole. A
// tar that was cut between two files looks like one that has ended; but then the reader has already
// met the end of the stream.
func (e *ending) rest() error {
	if e.over {
		return unreadable(io.ErrUnexpectedEOF)
	}
	const most = 1 << 20
	padding, err := io.ReadAll(io.LimitReader(e, most))
	if err != nil {
		return err
	}
	if len(bytes.Trim(padding, "\x00")) > 0 || len(padding) == most {
		return refuse("something follows the end of the tar")
	}
	return nil
}
