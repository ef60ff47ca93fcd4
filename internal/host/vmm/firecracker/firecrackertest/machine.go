package firecrackertest

import (
	"encoding/json"
	"errors"
	"fmt"
	"net"
	"net/http"
	"os"

	"golang.org/x/sys/unix"
)

const pageSize = 4096

// body is what is read of any request; each has other fields of it.
type body struct {
	Action    string `json:"action_type"`
	State     string `json:"state"`
	Kernel    string `json:"kernel_image_path"`
	Initrd    string `json:"initrd_path"`
	Path      string `json:"path_on_host"`
	Drive     string `json:"drive_id"`
	Interface string `json:"iface_id"`
	Saved     string `json:"snapshot_path"`
	Memory    string `json:"mem_file_path"`
	Type      string `json:"snapshot_type"`
	Track     bool   `json:"track_dirty_pages"`
	Resume    bool   `json:"resume_vm"`
	Backend   *struct {
		Type string `json:"backend_type"`
		Path string `json:"backend_path"`
	} `json:"mem_backend"`
	Limit     *limiter `json:"rate_limiter"`
	Tx        *limiter `json:"tx_rate_limiter"`
	Overrides []struct {
		Interface string `json:"iface_id"`
	} `json:"network_overrides"`
}

// limiter is as much of one as the stand-in keeps.
type limiter struct {
	Bandwidth *struct {
		Size int64 `json:"size"`
	} `json:"bandwidth"`
}

// set changes a rate as a limiter says; one that is not there changes nothing.
func (l *limiter) set(rate *int64) {
	if l != nil && l.Bandwidth != nil {
		*rate = l.Bandwidth.Size
	}
}

// change does what a request asks for.
func (m *machine) change(kind string, raw []byte) error {
	var b body
	if err := json.Unmarshal(raw, &b); err != nil {
		return err
	}
	switch kind {
	case "MachineConfig":
		m.booting = true
		return json.Unmarshal(raw, &m.config)
	case "BootSource":
		return m.setBootSource(b)
	case "Drive":
		b.Limit.set(&m.diskRate)
		return m.openDisk(b)
	case "DrivePatch":
		return m.patchDrive(b)
	case "NetworkInterface":
		m.booting, m.iface = true, b.Interface
		b.Tx.set(&m.netRate)
	case "NetworkInterfacePatch":
		return m.patchInterface(b)
	case "Entropy":
		m.booting = true
	case "Action":
		return m.act(b)
	case "VMState":
		m.state = map[string]string{"Paused": paused, "Resumed": running}[b.State]
	case "SnapshotCreate":
		return m.save(b)
	case "SnapshotLoad":
		return m.load(b)
	}
	return nil
}

func (m *machine) setBootSource(b body) error {
	for _, path := range []string{b.Kernel, b.Initrd} {
		if path == "" {
			continue
		}
		f, err := os.Open(path)
		if err != nil {
			return fmt.Errorf("the kernel or initrd file cannot be opened: %w", err)
		}
		if err := f.Close(); err != nil {
			return err
		}
	}
	m.kernel, m.booting = true, true
	return nil
}

func (m *machine) openDisk(b body) error {
	if b.Path == "" {
		return errors.New("a drive needs path_on_host")
	}
	f, err := os.OpenFile(b.Path, os.O_RDWR, 0)
	if err != nil {
		return fmt.Errorf("error manipulating the backing file: %w %s", err, b.Path)
	}
	if m.disk != nil {
		_ = m.disk.Close()
	}
	m.disk, m.path, m.drive, m.booting = f, b.Path, b.Drive, true
	return nil
}

func (m *machine) patchDrive(b body) error {
	if b.Drive != m.drive {
		return fmt.Errorf("unable to patch the block device: no such drive %s", b.Drive)
	}
	b.Limit.set(&m.diskRate)
	if b.Path == "" {
		return nil
	}
	return m.openDisk(b)
}

func (m *machine) patchInterface(b body) error {
	if b.Interface != m.iface {
		return fmt.Errorf("unable to patch the network interface: no such interface %s", b.Interface)
	}
	b.Tx.set(&m.netRate)
	return nil
}

func (m *machine) act(b body) error {
	if b.Action != "InstanceStart" {
		return errors.New("the stand-in only starts")
	}
	if !m.kernel {
		return errors.New("Cannot start microvm without kernel configuration.") //nolint:staticcheck // the real one's words
	}
	memory, err := unix.Mmap(-1, 0, m.config.MemoryMB<<20, unix.PROT_READ|unix.PROT_WRITE, unix.MAP_PRIVATE|unix.MAP_ANONYMOUS|unix.MAP_NORESERVE)
	if err != nil {
		return err
	}
	m.memory, m.state = memory, running
	m.write(0, "booted")
	say("[    0.000000] Linux version 0.0 (a stand-in)")
	return nil
}

func (m *machine) write(page int, text string) {
	copy(m.memory[page*pageSize:(page+1)*pageSize], make([]byte, pageSize))
	copy(m.memory[page*pageSize:], text)
	m.dirty[page] = true
}

// saved is the stand-in's device state.
type saved struct {
	MemoryMB               int
	Path, Drive, Interface string
	DiskRate, NetRate      int64
}

func (m *machine) save(b body) error {
	if m.state != paused {
		return errors.New("save/restore unavailable while running")
	}
	raw, err := json.Marshal(saved{m.config.MemoryMB, m.path, m.drive, m.iface, m.diskRate, m.netRate})
	if err != nil {
		return err
	}
	if err := os.WriteFile(b.Saved, raw, 0o644); err != nil {
		return fmt.Errorf("cannot perform open on the snapshot backing file: %w", err)
	}
	f, err := os.OpenFile(b.Memory, os.O_WRONLY|os.O_CREATE, 0o644)
	if err != nil {
		return fmt.Errorf("cannot perform open on the memory backing file: %w", err)
	}
	defer f.Close()
	return m.saveMemory(f, b.Type == "Diff")
}

// saveMemory merges a diff into a file of the right size. A failure after the pages were written
// comes after they were forgotten.
func (m *machine) saveMemory(f *os.File, diff bool) error {
	info, err := f.Stat()
	if err != nil {
		return err
	}
	if info.Size() != int64(len(m.memory)) {
		if err := errors.Join(f.Truncate(0), f.Truncate(int64(len(m.memory)))); err != nil {
			return err
		}
	}
	failing := m.failing
	m.failing = ""
	for page := range len(m.memory) / pageSize {
		if diff && !m.dirty[page] {
			continue
		}
		if failing == "write" {
			return errors.New("Cannot write memory file: No space left on device (os error 28)") //nolint:staticcheck // the real one's words
		}
		if _, err := f.WriteAt(m.memory[page*pageSize:(page+1)*pageSize], int64(page*pageSize)); err != nil {
			return err
		}
	}
	m.dirty = map[int]bool{}
	if failing == "silently" {
		_ = errors.Join(f.Truncate(0), f.Truncate(int64(len(m.memory))))
		panic(http.ErrAbortHandler)
	}
	if failing == "sync" {
		// The pages did not get there.
		_ = errors.Join(f.Truncate(0), f.Truncate(int64(len(m.memory))))
		return errors.New("Cannot perform sync_all on the memory backing file: Input/output error (os error 5)") //nolint:staticcheck // the real one's words
	}
	return nil
}

func (m *machine) load(b body) error {
	if m.booting {
		return errors.New("Loading a microVM snapshot not allowed after configuring boot-specific resources.") //nolint:staticcheck // the real one's words
	}
	if (b.Backend == nil) == (b.Memory == "") {
		return errors.New("either mem_backend or mem_file_path must be given, not both")
	}
	if err := m.restore(b); err != nil {
		return fatal{fmt.Errorf("Load snapshot error: %w", err)} //nolint:staticcheck // the real one's words
	}
	return nil
}

func (m *machine) restore(b body) error {
	raw, err := os.ReadFile(b.Saved)
	if err != nil {
		return err
	}
	var s saved
	if err := json.Unmarshal(raw, &s); err != nil {
		return err
	}
	for _, o := range b.Overrides {
		if o.Interface != s.Interface {
			return fmt.Errorf("unknown network device %s", o.Interface)
		}
	}
	if s.Path != "" {
		if err := m.openDisk(body{Path: s.Path, Drive: s.Drive}); err != nil {
			return err
		}
	}
	m.config.MemoryMB, m.iface, m.config.Track = s.MemoryMB, s.Interface, b.Track
	m.diskRate, m.netRate = s.DiskRate, s.NetRate
	if err := m.mapMemory(b); err != nil {
		return err
	}
	m.state = paused
	if b.Resume {
		m.state = running
	}
	return nil
}

func (m *machine) mapMemory(b body) (err error) {
	bytes := m.config.MemoryMB << 20
	if b.Backend.Type == "Uffd" {
		conn, err := net.Dial("unix", b.Backend.Path)
		if err != nil {
			return err
		}
		// The real one keeps the connection too.
		if _, err := fmt.Fprintf(conn, `[{"size":%d}]`, bytes); err != nil {
			return err
		}
		m.memory, err = unix.Mmap(-1, 0, bytes, unix.PROT_READ|unix.PROT_WRITE, unix.MAP_PRIVATE|unix.MAP_ANONYMOUS|unix.MAP_NORESERVE)
		return err
	}
	f, err := os.Open(b.Backend.Path)
	if err != nil {
		return err
	}
	if info, err := f.Stat(); err != nil || info.Size() < int64(bytes) {
		return errors.New("total sum of memory regions exceeds largest possible file offset")
	}
	m.memory, err = unix.Mmap(int(f.Fd()), 0, bytes, unix.PROT_READ|unix.PROT_WRITE, unix.MAP_PRIVATE|unix.MAP_NORESERVE)
	return err
}

// say prints, not by a File: the runtime would wait where the real one drops what does not fit.
func say(line string) { _, _ = unix.Write(unix.Stdout, []byte(line+"\n")) }
