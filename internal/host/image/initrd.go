package image

import (
	"bytes"
	"encoding/json"
	"errors"
	"io"
	"maps"
	"os"
	"path"
	"slices"
	"time"

	"github.com/roosthq/roost/internal/fault"
)

// BootConfig is /roost/boot.json in the initramfs: what the guest must know before anybody
// can talk to it.
type BootConfig struct {
	ControlToken string `json:"control_token"`
	RootDevice   string `json:"root_device"`
	// Modules are files of /roost/modules to load, in this order.
	Modules     []string          `json:"modules"`
	Hostname    string            `json:"hostname"`
	Address     string            `json:"address"`
	Gateway     string            `json:"gateway"`
	DNS         string            `json:"dns"`
	MAC         string            `json:"mac"`
	DefaultUser string            `json:"default_user"`
	Envs        map[string]string `json:"envs"`
}

// DefaultRootDevice is where a VM finds its disk.
const DefaultRootDevice = "/dev/vda"

// Digest is the hash of all but the token, for WarmKey.Boot.
func (b BootConfig) Digest() string {
	b.ControlToken = ""
	return hashJSON(b)
}

// fill takes from the template what the caller left empty.
func (b BootConfig) fill(t Template) BootConfig {
	if b.RootDevice == "" {
		b.RootDevice = DefaultRootDevice
	}
	if b.DefaultUser == "" {
		b.DefaultUser = t.DefaultUser
	}
	if b.Modules == nil {
		b.Modules = t.ModuleNames()
	}
	if b.Envs == nil {
		b.Envs = map[string]string{}
	}
	return b
}

// BootConfig completes a configuration with the template's modules, user and root device; give
// it to Initrd and to WarmKey.
func (t Template) BootConfig(b BootConfig) BootConfig { return b.fill(t) }

// Initrd writes the initramfs of one VM to dst (0600: the token is in it): the guest agent as
// /init and the modules, which are kept and shared by content, then boot.json.
func (s *Store) Initrd(t Template, guestPath string, boot BootConfig, dst string) (err error) {
	if boot.ControlToken == "" {
		return fault.New(fault.Invalid, "make initramfs", dst, "no control token")
	}
	base, err := s.initrdBase(t, guestPath)
	if err != nil {
		return fault.Wrap(err, "make initramfs", dst)
	}
	defer func() { _ = base.Close() }() // read only
	tail, err := bootPart(boot.fill(t))
	if err != nil {
		return fault.Wrap(err, "make initramfs", dst)
	}
	return fail(writeParts(dst, base, tail), "make initramfs", dst)
}

// writeParts makes a new file of both; a failure leaves none.
func writeParts(dst string, base *os.File, tail []byte) error {
	if err := removeIfThere(dst); err != nil {
		return err
	}
	out, err := os.OpenFile(dst, os.O_CREATE|os.O_EXCL|os.O_WRONLY, 0o600)
	if err != nil {
		return err
	}
	_, err = io.Copy(out, base) // copy_file_range: no byte passes through us
	if err == nil {
		_, err = out.Write(tail)
	}
	if err = errors.Join(err, out.Close()); err != nil {
		return errors.Join(err, removeIfThere(dst))
	}
	return nil
}

func bootPart(boot BootConfig) ([]byte, error) {
	data, err := json.Marshal(boot)
	if err != nil {
		return nil, err
	}
	var buf bytes.Buffer
	c := &newcWriter{w: &buf}
	c.file("roost/boot.json", 0o600, bytes.NewReader(data), int64(len(data)))
	err = c.close()
	return buf.Bytes(), err
}

// initrdBase opens the shared part, making it the first time. Making it twice at once is
// harmless: both are the same, and one rename wins.
func (s *Store) initrdBase(t Template, guestPath string) (*os.File, error) {
	guestSum, _, err := hashFile(guestPath)
	if err != nil {
		return nil, fail(err, "read guest agent", guestPath)
	}
	name := s.path(initrdDir, baseID(t, guestSum)+".cpio")
	if f, err := os.Open(name); err == nil {
		return f, nil
	}
	if err := s.makeInitrdBase(t, guestPath, name); err != nil {
		return nil, fail(err, "make shared initramfs", name)
	}
	f, err := os.Open(name)
	return f, fail(err, "open shared initramfs", name)
}

func baseID(t Template, guestSum string) string {
	const layout = 1 // change it with what writeBase writes
	parts := []any{layout, guestSum}
	for _, m := range t.Modules {
		parts = append(parts, m.Name, m.SHA256)
	}
	return hashJSON(parts)
}

func (s *Store) makeInitrdBase(t Template, guestPath, name string) (err error) {
	work, err := s.newWorkspace()
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, work.remove()) }()
	f, err := os.OpenFile(work.path("base.cpio"), os.O_CREATE|os.O_EXCL|os.O_WRONLY, 0o400)
	if err != nil {
		return err
	}
	err = writeBase(f, t, guestPath)
	if err = errors.Join(err, f.Sync(), f.Close()); err != nil {
		return err
	}
	if err := os.Rename(f.Name(), name); err != nil {
		return err
	}
	return errors.Join(syncPath(s.path(initrdDir)), s.pruneInitrds())
}

// keptInitrds bounds the shared parts: each new guest agent makes one.
const keptInitrds = 8

// pruneInitrds removes the oldest shared parts. They are only a cache, and whoever has one
// open keeps it.
func (s *Store) pruneInitrds() error {
	entries, err := os.ReadDir(s.path(initrdDir))
	if err != nil {
		return err
	}
	age := map[string]time.Time{}
	for _, e := range entries {
		if info, err := e.Info(); err == nil { // gone already otherwise
			age[e.Name()] = info.ModTime()
		}
	}
	names := slices.SortedFunc(maps.Keys(age), func(a, b string) int { return age[b].Compare(age[a]) })
	var errs []error
	for _, name := range names[min(keptInitrds, len(names)):] {
		errs = append(errs, removeIfThere(s.path(initrdDir, name)))
	}
	return errors.Join(errs...)
}

// initrdDirs are the mount points and directories that the guest needs before it has a root.
var initrdDirs = []string{"dev", "proc", "sys", "run", "tmp", "newroot", "roost", "roost/modules"}

func writeBase(w io.Writer, t Template, guestPath string) error {
	c := &newcWriter{w: w}
	for _, dir := range initrdDirs {
		c.dir(dir, 0o755)
	}
	// The kernel opens /dev/console for init before anything can mount devtmpfs.
	c.char("dev/console", 0o600, 5, 1)
	c.char("dev/null", 0o666, 1, 3)
	if err := addFile(c, "init", 0o755, guestPath); err != nil {
		return err
	}
	for _, m := range t.Modules {
		if err := addFile(c, path.Join("roost/modules", m.Name), 0o644, m.Path); err != nil {
			return err
		}
	}
	return c.close()
}

func addFile(c *newcWriter, name string, perm uint32, src string) error {
	f, err := os.Open(src)
	if err != nil {
		return err
	}
	defer func() { _ = f.Close() }() // read only
	st, err := f.Stat()
	if err != nil {
		return err
	}
	c.file(name, perm, f, st.Size())
	return c.err
}
