package runtimetest

import (
	"crypto/sha256"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	goruntime "runtime"
	"testing"

	"github.com/stretchr/testify/require"
	"golang.org/x/sys/unix"

	"github.com/roosthq/roost/internal/host/runtime"
	"github.com/roosthq/roost/internal/host/vmm/vmmtest"
)

// fixtures are what sandboxes start from.
type fixtures struct {
	template runtime.Template
	// guest is the guest agent, modules what a kernel needs, in the order to load.
	guest   string
	modules []string
}

// diskMB is the size of the template's ext4 image, and so the least disk.
const diskMB = 48

// modules are what the kernel needs for its virtio devices, in the order to load.
var modules = []string{
	"net/core/failover", "drivers/net/net_failover", "drivers/virtio/virtio_ring", "drivers/virtio/virtio",
	"drivers/virtio/virtio_mmio", "drivers/block/virtio_blk", "drivers/net/virtio_net",
	"drivers/char/hw_random/virtio-rng",
}

func makeFixtures(t *testing.T, caps runtime.Capabilities) fixtures {
	t.Helper()
	images, guest, err := prepared(t.TempDir())
	require.NoError(t, err, "make the file tree and the guest agent")
	f := fixtures{
		guest: guest,
		template: runtime.Template{
			Digest: filepath.Base(images), DiskBytes: diskMB << 20,
			Disk: filepath.Join(images, diskName), Tree: filepath.Join(images, treeName),
		},
	}
	if !caps.GuestBoots {
		return f
	}
	kernel := vmmtest.Build(t)
	f.template.Kernel, f.template.KernelELF = kernel.Kernel, kernel.KernelELF
	root := filepath.Dir(filepath.Dir(f.template.Kernel))
	for _, m := range modules {
		found, err := filepath.Glob(filepath.Join(root, "lib", "modules", "*", "kernel", m+".ko"))
		require.NoError(t, err)
		require.Len(t, found, 1, m)
		f.modules = append(f.modules, found[0])
	}
	return f
}

// repo is the folder of the repository, and cache that of what the suite keeps.
func repo() string {
	_, file, _, _ := goruntime.Caller(0)
	return filepath.Join(filepath.Dir(file), "..", "..", "..", "..")
}

func cache() string { return filepath.Join(repo(), ".cache", "runtimetest") }

// prepared are images and guest agent, which is built into dir. Where there is no Go, they are what
// Prepare left.
func prepared(dir string) (images, guest string, err error) {
	if _, err := exec.LookPath("go"); errors.Is(err, exec.ErrNotFound) {
		there := filepath.Join(cache(), preparedName)
		return there, filepath.Join(there, guestName), nil
	}
	guest = filepath.Join(dir, guestName)
	if images, err = makeImages(cache()); err != nil {
		return "", "", err
	}
	return images, guest, buildGuest(repo(), guest)
}

// Prepare makes what the suite needs on a machine without Go, beside what vmmtest.Prepare makes: the
// folder that it returns, which must be at the same path there.
func Prepare() (string, error) {
	unready := filepath.Join(cache(), preparedName+".new")
	if err := errors.Join(os.RemoveAll(unready), os.MkdirAll(unready, 0o755)); err != nil {
		return "", err
	}
	images, _, err := prepared(unready)
	if err != nil {
		return "", err
	}
	for _, name := range []string{diskName, treeName} {
		if err := os.Link(filepath.Join(images, name), filepath.Join(unready, name)); err != nil {
			return "", err
		}
	}
	ready := filepath.Join(cache(), preparedName)
	return ready, errors.Join(os.RemoveAll(ready), os.Rename(unready, ready))
}

// buildGuest builds the agent from its source, whatever binary is embedded elsewhere.
func buildGuest(repo, to string) error {
	cmd := exec.Command("go", "build", "-trimpath", "-ldflags=-s -w", "-o", to, "./cmd/roost-guest")
	cmd.Dir = repo
	cmd.Env = append(os.Environ(), "CGO_ENABLED=0", "GOFLAGS=")
	return runCommand(cmd)
}

func runCommand(cmd *exec.Cmd) error {
	if out, err := cmd.CombinedOutput(); err != nil {
		return fmt.Errorf("%s: %w: %s", cmd, err, out)
	}
	return nil
}

// Names in the directory of images.
const (
	diskName = "disk.ext4"
	treeName = "tree.erofs"
	// preparedName is the folder of Prepare, and guestName the agent in it.
	preparedName = "prepared"
	guestName    = "roost-guest"
)

// makeImages makes both forms of the file tree, once per content; the directory appears
// complete or not at all.
func makeImages(cache string) (string, error) {
	if err := os.MkdirAll(cache, 0o755); err != nil {
		return "", err
	}
	unlock, err := lock(filepath.Join(cache, "lock")) // packages are tested side by side
	if err != nil {
		return "", err
	}
	defer unlock()
	busybox, err := findBusybox()
	if err != nil {
		return "", err
	}
	recipe, err := os.ReadFile(busybox)
	if err != nil {
		return "", err
	}
	for _, args := range [][]string{mke2fsArgs("", ""), erofsArgs("", ""), {treeVersion}} {
		recipe = fmt.Append(recipe, args)
	}
	dir := filepath.Join(cache, fmt.Sprintf("%x", sha256.Sum256(recipe)))
	if _, err := os.Stat(dir); err == nil {
		return dir, nil
	}
	work, err := os.MkdirTemp(cache, "make-")
	if err != nil {
		return "", err
	}
	defer os.RemoveAll(work)
	return dir, errors.Join(fillImages(work, busybox), os.Rename(filepath.Join(work, "images"), dir))
}

func findBusybox() (string, error) {
	path, err := exec.LookPath("busybox")
	if err != nil {
		return "", fmt.Errorf("%w (package busybox-static; make setup-dev installs it)", err)
	}
	return path, nil
}

func fillImages(work, busybox string) error {
	tree, images := filepath.Join(work, "tree"), filepath.Join(work, "images")
	if err := errors.Join(os.Mkdir(images, 0o755), makeTree(tree, busybox)); err != nil {
		return err
	}
	disk := filepath.Join(images, diskName)
	for _, argv := range [][]string{mke2fsArgs(tree, disk), erofsArgs(tree, filepath.Join(images, treeName))} {
		if err := runCommand(exec.Command(argv[0], argv[1:]...)); err != nil {
			return err
		}
	}
	return os.Chmod(disk, 0o400)
}

// mke2fsArgs are those of template images (package image), for a small disk.
func mke2fsArgs(tree, disk string) []string {
	return []string{
		"mke2fs", "-q", "-F", "-t", "ext4", "-d", tree, "-O",
		"none,has_journal,ext_attr,resize_inode,dir_index,filetype,extent,64bit,flex_bg," +
			"sparse_super,large_file,huge_file,dir_nlink,extra_isize,metadata_csum",
		"-b", "4096", "-I", "256", "-i", "16384", "-m", "0", "-J", "size=4",
		"-E", "resize=262144,lazy_itable_init=0,lazy_journal_init=0,root_owner=0:0",
		disk, fmt.Sprintf("%dk", diskMB<<10),
	}
}

// erofsArgs: gVisor reads no inline data.
func erofsArgs(tree, to string) []string {
	return []string{
		"mkfs.erofs", "--quiet", "-Enoinline_data,force-inode-extended", "--all-root",
		"-U", "5e9e25b8-6f1b-4a40-9f51-5f6b6b1d0001", to, tree,
	}
}

func lock(path string) (func(), error) {
	f, err := os.OpenFile(path, os.O_CREATE|os.O_RDWR, 0o600)
	if err != nil {
		return nil, err
	}
	if err := unix.Flock(int(f.Fd()), unix.LOCK_EX); err != nil {
		_ = f.Close()
		return nil, err
	}
	return func() { _ = f.Close() }, nil
}
