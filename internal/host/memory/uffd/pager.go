package uffd

import (
	"context"
	"encoding/json"
	"errors"
	"os"
	"path/filepath"
	"strings"
	"time"
	"unicode"

	"golang.org/x/sys/unix"

	"github.com/roosthq/roost/internal/fault"
	"github.com/roosthq/roost/internal/host/memory"
	"github.com/roosthq/roost/internal/host/process"
)

// Names in the VM's directory.
const (
	socketName = "pager.sock"
	stateName  = "pager.state"
	logName    = "pager.log"
)

// Defaults of StartOptions.
const (
	DefaultWindow = 16
	DefaultRecord = 10 * time.Second
)

// StartOptions describe the page server of one VM. All files are opened here, as root; the server
// gets their descriptors.
type StartOptions struct {
	// Exe runs Main with one more argument; nil: this program's `pager`. UID must be able to
	// execute it.
	Exe []string
	// Dir is the VM's, private to root. The socket, the state and the log go there.
	Dir string
	// UID and GID are the VM's.
	UID, GID int
	// Bytes of RAM.
	Bytes int64
	// Base is the template's memory file, which must never be edited; "" if the map is complete
	// without. It is verified, once for all starts.
	Base string
	// Map and Layers are a capture's, oldest layer first; "" and none: the template alone.
	Map    string
	Layers []string
	// WorkingSet is put before it is asked for; "" or a file that is not there: nothing is, and the
	// order of faults is recorded for SaveWorkingSet.
	WorkingSet string
	// Record is how long; 0: DefaultRecord, negative: never.
	Record time.Duration
	// Window is how many pages around a fault are put with it, a power of two; 0: DefaultWindow.
	Window int
}

// Handle is what a journal keeps to adopt a pager after an agent restart.
type Handle struct {
	PID       int    `json:"pid"`
	StartTime uint64 `json:"start_time"`
	BootID    string `json:"boot_id"`
	Dir       string `json:"dir"`
}

// Socket is where the VMM connects (vmm.Memory.Pager).
func (h Handle) Socket() string { return filepath.Join(h.Dir, socketName) }

// Pager is a page server's process. Methods may be called at the same time.
type Pager struct {
	handle Handle
	proc   *process.Process
}

// Start starts the page server of a VM that is about to be restored. When it returns, the VMM may
// connect, once. What can be wrong with the files is told here, damaged pages by Err later. On failure
// nothing is left but the log.
func Start(ctx context.Context, o StartOptions) (*Pager, error) {
	p, err := start(ctx, o)
	return p, fault.Wrap(err, "start pager of", o.Dir)
}

func start(ctx context.Context, o StartOptions) (_ *Pager, err error) {
	in, err := o.open(ctx)
	if err != nil {
		return nil, err
	}
	defer in.close()
	defer func() {
		if err != nil {
			err = errors.Join(err, o.remove())
		}
	}()
	if in.state, err = createState(o.path(stateName), pagesOf(o.Bytes)); err != nil {
		return nil, err
	}
	if in.socket, err = o.listen(); err != nil {
		return nil, err
	}
	return o.launch(in, false)
}

func (o StartOptions) path(name string) string { return filepath.Join(o.Dir, name) }

// remove takes away what only a VM's pager needs.
func (o StartOptions) remove() error {
	var errs []error
	for _, name := range []string{socketName, stateName} {
		if err := os.Remove(o.path(name)); err != nil && !errors.Is(err, os.ErrNotExist) {
			errs = append(errs, err)
		}
	}
	return errors.Join(errs...)
}

// open opens and checks the files that are read.
func (o StartOptions) open(ctx context.Context) (_ *inherited, err error) {
	in := &inherited{}
	defer func() {
		if err != nil {
			in.close()
		}
	}()
	if o.Base != "" {
		if _, err := memory.Verify(ctx, o.Base, o.Bytes); err != nil {
			return nil, err
		}
		if in.base, err = os.Open(o.Base); err != nil {
			return nil, err
		}
	}
	if o.Map != "" {
		if err := in.openMap(o); err != nil {
			return nil, err
		}
	}
	if o.WorkingSet != "" {
		in.set, err = os.Open(o.WorkingSet)
		if errors.Is(err, os.ErrNotExist) {
			in.set, err = nil, nil
		}
		if err != nil {
			return nil, err
		}
	}
	source, err := in.source(o.Bytes)
	if err != nil {
		return nil, err
	}
	return in, source.Close()
}

func (in *inherited) openMap(o StartOptions) (err error) {
	if in.m, err = os.Open(o.Map); err != nil {
		return err
	}
	m, err := memory.ReadMapFrom(in.m)
	if err != nil {
		return err
	}
	layers, err := memory.OpenLayers(m, o.Layers)
	if err == nil {
		in.layers = layers.Files()
	}
	return err
}

// files are what the process gets from descriptor firstFile on.
func (in *inherited) files() []*os.File {
	var out []*os.File
	for _, f := range append([]*os.File{in.state, in.socket, in.vmm, in.base, in.m}, append(in.layers, in.set)...) {
		if f != nil {
			out = append(out, f)
		}
	}
	return out
}

func (in *inherited) close() {
	for _, f := range in.files() {
		_ = f.Close() // the process has its own; nothing is buffered here
	}
}

// listen makes the socket that only the VM's uid can connect to, from the first moment on.
func (o StartOptions) listen() (*os.File, error) {
	path := o.path(socketName)
	fd, err := unix.Socket(unix.AF_UNIX, unix.SOCK_STREAM|unix.SOCK_CLOEXEC, 0)
	if err != nil {
		return nil, fault.Wrap(err, "make socket", path)
	}
	f := os.NewFile(uintptr(fd), path)
	if err := os.Remove(path); err != nil && !errors.Is(err, os.ErrNotExist) {
		return nil, errors.Join(fault.Wrap(err, "make socket", path), f.Close())
	}
	err = unix.Bind(fd, &unix.SockaddrUnix{Name: path})
	if err == nil { // nobody can connect before it listens
		err = errors.Join(os.Chown(path, o.UID, o.GID), os.Chmod(path, 0o600))
	}
	if err == nil {
		err = unix.Listen(fd, 1)
	}
	if err != nil {
		return nil, errors.Join(fault.Wrap(err, "make socket", path), f.Close())
	}
	return f, nil
}

// launch starts the process with the files.
func (o StartOptions) launch(in *inherited, attach bool) (*Pager, error) {
	log, err := os.OpenFile(o.path(logName), os.O_WRONLY|os.O_CREATE|os.O_APPEND, 0o600)
	if err != nil {
		return nil, err
	}
	defer func() { _ = log.Close() }() // the process has its own
	null, err := os.Open(os.DevNull)
	if err != nil {
		return nil, err
	}
	defer func() { _ = null.Close() }()
	options, err := json.Marshal(o.options(in, attach))
	if err != nil {
		return nil, err
	}
	exe := o.Exe
	if len(exe) == 0 {
		exe = []string{"/proc/self/exe", "pager"}
	}
	proc, err := process.Start(process.Spec{
		Path: exe[0], Args: append(append([]string(nil), exe[1:]...), string(options)),
		// A collection of garbage beside two threads that serve is enough.
		Env:   []string{"GOMAXPROCS=2", "GOTRACEBACK=single"},
		Files: append([]*os.File{null, log, log}, in.files()...),
		UID:   o.UID, GID: o.GID, MaxFiles: maxFiles,
	})
	if err != nil {
		return nil, err
	}
	h := Handle{PID: proc.PID, StartTime: proc.StartTime, BootID: process.BootID(), Dir: o.Dir}
	return &Pager{handle: h, proc: proc}, nil
}

// maxFiles is more than the descriptors that a server has ever: a VM cannot give it more.
const maxFiles = 64

func (o StartOptions) options(in *inherited, attach bool) Options {
	out := Options{
		Bytes: o.Bytes, Attach: attach, Base: in.base != nil, Map: in.m != nil, Layers: len(in.layers),
		WorkingSet: in.set != nil, Window: uint32(o.Window), Record: o.Record,
	}
	if out.Window == 0 {
		out.Window = DefaultWindow
	}
	switch {
	case out.WorkingSet || o.Record < 0:
		out.Record = 0
	case o.Record == 0:
		out.Record = DefaultRecord
	}
	return out
}

// Adopt takes over a pager that another agent process started; fault.NotFound: it is gone, and
// Reattach may start another.
func Adopt(h Handle) (*Pager, error) {
	if h.BootID != process.BootID() {
		return nil, fault.New(fault.NotFound, "adopt pager of", h.Dir, "the host was restarted")
	}
	proc, err := process.Open(h.PID, h.StartTime)
	if err != nil {
		return nil, fault.Wrap(err, "adopt pager of", h.Dir)
	}
	return &Pager{handle: h, proc: proc}, nil
}

// Handle identifies the pager.
func (p *Pager) Handle() Handle { return p.handle }

// Exited is closed when the process is gone.
func (p *Pager) Exited() <-chan struct{} { return p.proc.Done() }

// Err waits for the process to end and says why it did: nil when its VM is gone; fault.DataLoss:
// what the VM needs is damaged; fault.Invalid: the VMM sent what it must not; fault.Unavailable: it
// was ended, and a Reattach can go on where it was.
func (p *Pager) Err() error {
	status := p.proc.Status()
	end, reason := endUnknown, ""
	if f, err := os.Open(p.path(stateName)); err == nil {
		if h, err := readHeader(f); err == nil {
			end, reason = int(h.end), printable(h.reason[:min(h.reasonLen, reasonBytes)])
		}
		_ = f.Close() // only read
	}
	switch end {
	case endGone:
		return nil
	case endDataLoss:
		return fault.New(fault.DataLoss, "serve memory in", p.handle.Dir, reason)
	case endRefused:
		return fault.New(fault.Invalid, "serve memory in", p.handle.Dir, reason)
	case endFailed:
		return fault.New(fault.Unavailable, "serve memory in", p.handle.Dir, reason)
	default:
		return fault.New(fault.Unavailable, "serve memory in", p.handle.Dir, "the page server was "+status.String()).
			WithHint("its log is " + p.path(logName))
	}
}

func (p *Pager) path(name string) string { return filepath.Join(p.handle.Dir, name) }

// printable keeps what a reader's terminal cannot mind.
func printable(b []byte) string {
	return strings.Map(func(r rune) rune {
		if unicode.IsPrint(r) {
			return r
		}
		return '?'
	}, string(b))
}

// Stop ends the pager, in whatever it waits, and takes away its socket and state. The VM must be
// gone, or it hangs for ever. Idempotent.
func (p *Pager) Stop(ctx context.Context) error {
	if err := p.proc.Kill(ctx); err != nil {
		return fault.Wrap(err, "stop pager of", p.handle.Dir)
	}
	return fault.Wrap(StartOptions{Dir: p.handle.Dir}.remove(), "stop pager of", p.handle.Dir)
}

// Detach lets go of the pager without ending it.
func (p *Pager) Detach() { p.proc.Release() }

// Stats are what a VM's page servers did, over all their lives. Counts are pages.
type Stats struct {
	// Faults that the VM waited for, Copied and Zeroed pages, of which Prefetched, and Removed by the VM.
	Faults, Copied, Zeroed, Prefetched, Removed uint64
}

// Stats reads what was done until now.
func (p *Pager) Stats() (Stats, error) {
	f, err := os.Open(p.path(stateName))
	if err != nil {
		return Stats{}, fault.Wrap(err, "measure pager of", p.handle.Dir)
	}
	defer func() { _ = f.Close() }() // only read
	h, err := readHeader(f)
	if err != nil {
		return Stats{}, err
	}
	c := h.counters
	return Stats{c[countFaults], c[countCopied], c[countZeroed], c[countPrefetched], c[countRemoved]}, nil
}
