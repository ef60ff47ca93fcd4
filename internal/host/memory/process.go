package memory

import (
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"strconv"

	"golang.org/x/sys/unix"

	"github.com/roosthq/roost/internal/fault"
)

// Mapping is where a VM's RAM lies in its VMM's address space: a private mapping of the
// template's memory.
type Mapping struct {
	PID int
	// Addr is page-aligned; Bytes is the whole RAM.
	Addr  uint64
	Bytes int64
	// Template, when not zero, identifies the memory under the mapping (Info.ID). Capture puts
	// it into the map; Apply refuses a map that names another.
	Template Hash
}

func (m Mapping) check() error {
	if m.PID <= 0 || m.Addr%PageSize != 0 {
		return fault.New(fault.Invalid, "", "", fmt.Sprintf("no mapping: pid %d, address %#x", m.PID, m.Addr))
	}
	return checkSize(m.Bytes)
}

func (m Mapping) String() string { return fmt.Sprintf("memory of process %d", m.PID) }

// process holds the files of one process. Each is bound to the process that had the pid when
// it was opened, so that a recycled pid is never read or written.
type process struct {
	Mapping
	mem, pagemap *os.File
}

func openProcess(m Mapping, flags int) (*process, error) {
	if err := m.check(); err != nil {
		return nil, err
	}
	dir, err := os.OpenRoot("/proc/" + strconv.Itoa(m.PID))
	if err != nil {
		return nil, gone(err)
	}
	defer func() { _ = dir.Close() }() // only a name
	mem, err := dir.OpenFile("mem", flags, 0)
	if err != nil {
		return nil, gone(err)
	}
	pagemap, err := dir.Open("pagemap")
	if err != nil {
		return nil, errors.Join(gone(err), mem.Close())
	}
	return &process{m, mem, pagemap}, nil
}

func (p *process) close() {
	// Nothing is buffered in these: there is no error that could mean anything.
	_ = p.mem.Close()
	_ = p.pagemap.Close()
}

// gone gives a process that is not there its own kind.
func gone(err error) error {
	if errors.Is(err, os.ErrNotExist) || errors.Is(err, unix.ESRCH) || errors.Is(err, io.EOF) {
		return &fault.Error{Kind: fault.NotFound, Err: fmt.Errorf("the process is gone: %w", err)}
	}
	return err
}

// read fills b with the pages from start on.
func (p *process) read(b []byte, start uint32) error {
	_, err := p.mem.ReadAt(b, p.offset(start))
	return gone(err)
}

func (p *process) write(b []byte, start uint32) error {
	_, err := p.mem.WriteAt(b, p.offset(start))
	return gone(err)
}

func (p *process) offset(page uint32) int64 { return int64(p.Addr) + int64(page)*PageSize }

// Usage is the RAM that a mapping costs apart from the template's, in bytes: its private pages
// that are not swapped out.
func Usage(pid int, addr uint64, bytes int64) (int64, error) {
	m := Mapping{PID: pid, Addr: addr, Bytes: bytes}
	p, err := openProcess(m, os.O_RDONLY)
	if err != nil {
		return 0, fault.Wrap(err, "measure", m.String())
	}
	defer p.close()
	list, err := private(context.Background(), p.pagemap, m, false)
	return int64(pagesIn(list)) * PageSize, fault.Wrap(err, "measure", m.String())
}
