package vm

import (
	"encoding/json"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"strconv"

	"github.com/roosthq/roost/internal/host/vmm/vmmtest/debian"
	"github.com/roosthq/roost/test/vm/guest"
)

// programPath is where the program is in the VM: its own path outside is go test's, and may be long.
const programPath = "/lane.program"

// scratchPath is the guest's temporary folder.
const scratchPath = "/tmp"

// etc is the least that programs look for.
var etc = map[string]string{
	"/etc/passwd":        "root:x:0:0:root:/root:/bin/sh\nnobody:x:65534:65534:nobody:/:/usr/sbin/nologin\n",
	"/etc/group":         "root:x:0:\nkvm:x:108:\nnogroup:x:65534:\n",
	"/etc/hosts":         "127.0.0.1 localhost lane\n::1 localhost\n",
	"/etc/resolv.conf":   "",
	"/etc/hostname":      "lane\n",
	"/etc/nsswitch.conf": "passwd: files\ngroup: files\nhosts: files dns\n",
	"/etc/os-release":    "ID=debian\nVERSION_ID=\"12\"\nPRETTY_NAME=\"Roost's test lane\"\n",
}

// merged folders are links, as Debian's: a library is found under either name.
var merged = map[string]string{"/bin": "usr/bin", "/sbin": "usr/sbin", "/lib": "usr/lib", "/lib64": "usr/lib64"}

// machine is what QEMU boots: files that have no name any more, so that whatever becomes of
// this process, none is left.
type machine struct {
	kernel  string
	initrd  *os.File
	scratch *os.File
	drives  []drive
}

type drive struct {
	serial string
	file   *os.File
}

func (m *machine) close() error {
	list := []error{m.initrd.Close(), m.scratch.Close()}
	for _, d := range m.drives {
		list = append(list, d.file.Close())
	}
	return errors.Join(list...)
}

// build makes what the VM boots from.
func build(c Config, s Shape) (_ *machine, err error) {
	root, err := debian.Kernel()
	if err != nil {
		return nil, fmt.Errorf("get Debian's kernel: %w", err)
	}
	m := &machine{}
	if m.kernel, err = debian.One(filepath.Join(root, "boot", "vmlinuz-*")); err != nil {
		return nil, err
	}
	defer func() {
		if err != nil {
			_ = m.close()
		}
	}()
	plan := guest.Plan{Scratch: scratchPath, Args: append([]string{programPath}, c.Args...), Env: c.Env, Dir: c.Dir, Merged: sameFile(os.Stdout, os.Stderr)}
	if plan.Drives, err = m.addDrives(c); err != nil {
		return nil, err
	}
	if m.scratch, err = makeScratch(c.ScratchMB); err != nil {
		return nil, err
	}
	if m.initrd, err = nameless("initrd"); err != nil {
		return nil, err
	}
	return m, pack(m.initrd, root, c, s, plan)
}

func (m *machine) addDrives(c Config) ([]guest.Drive, error) {
	var out []guest.Drive
	add := func(f *os.File, place string) {
		serial := "drive" + strconv.Itoa(len(m.drives))
		m.drives = append(m.drives, drive{serial, f})
		out = append(out, guest.Drive{Serial: serial, Path: place})
	}
	for _, p := range c.Drives {
		f, err := os.Open(p.Host)
		if err != nil {
			return nil, err
		}
		add(f, p.Guest)
	}
	for _, p := range c.Trees {
		f, err := makeTree(p.Host)
		if err != nil {
			return nil, err
		}
		add(f, p.Guest)
	}
	return out, nil
}

// pack writes the first root file system.
func pack(to *os.File, kernelRoot string, c Config, s Shape, plan guest.Plan) error {
	a := newArchive(to)
	dir, err := debian.One(filepath.Join(kernelRoot, "lib", "modules", "*"))
	if err != nil {
		return err
	}
	if plan.Modules, err = addModules(a, dir, s.Modules); err != nil {
		return err
	}
	if err := addLinks(a); err != nil {
		return err
	}
	for _, p := range c.Files { // first: they replace what the lane would put there
		if err := a.file(p.Guest, p.Host); err != nil {
			return err
		}
	}
	if err := addSystem(a); err != nil {
		return err
	}
	if err := addTools(a, c, s); err != nil {
		return err
	}
	if err := addProgram(a, c); err != nil {
		return err
	}
	text, err := json.Marshal(plan)
	if err != nil {
		return err
	}
	if err := a.text(guest.PlanPath, text); err != nil {
		return err
	}
	return a.close()
}

// addLinks makes the merged folders.
func addLinks(a *archive) error {
	for name, to := range merged {
		if err := a.folder(to); err != nil {
			return err
		}
		if err := a.link(name, to); err != nil {
			return err
		}
	}
	return a.link("/var/run", "/run")
}

// addSystem adds the init, which is this program itself, and what a system has.
func addSystem(a *archive) error {
	for _, dir := range []string{"/dev", "/proc", "/sys", "/run", "/tmp", "/root", "/mnt", "/var/tmp", "/var/lib", "/usr/local/bin"} {
		if err := a.folder(dir); err != nil {
			return err
		}
	}
	for name, text := range etc {
		if err := a.text(name, []byte(text)); err != nil {
			return err
		}
	}
	return a.file("/init", "/proc/self/exe")
}

func addModules(a *archive, dir string, wanted []string) ([]guest.Module, error) {
	m, err := openModules(dir)
	if err != nil {
		return nil, err
	}
	list, err := m.order(wanted)
	if err != nil {
		return nil, err
	}
	for _, one := range list {
		if err := a.file(filepath.Join(guest.ModuleDir, one.Name+".ko"), m.files[one.Name]); err != nil {
			return nil, err
		}
	}
	return list, nil
}

func addTools(a *archive, c Config, s Shape) error {
	var need closure
	for _, name := range join(s.Tools, c.Tools) {
		if err := need.addTool(name); err != nil {
			return err
		}
	}
	for _, path := range s.Files {
		if filepath.Ext(path) == ".so" {
			if err := need.add(path); err != nil {
				return err
			}
		} else {
			need.files = append(need.files, path)
		}
	}
	for _, path := range need.files {
		if err := a.file(path, path); err != nil {
			return err
		}
	}
	return nil
}

func addProgram(a *archive, c Config) error {
	if err := a.file(programPath, c.Program); err != nil {
		return err
	}
	return a.tree(c.Dir, c.Dir)
}
