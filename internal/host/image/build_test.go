package image_test

import (
	"bytes"
	"context"
	"fmt"
	"io"
	"log/slog"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/stretchr/testify/require"
	"golang.org/x/sys/unix"

	"github.com/roosthq/roost/images"
	"github.com/roosthq/roost/internal/fault"
	"github.com/roosthq/roost/internal/host/image"
)

func needBuildTools(t *testing.T) {
	t.Helper()
	for _, tool := range []string{"mmdebstrap", "mkfs.erofs", "fsck.erofs", "mke2fs", "debugfs", "resize2fs", "apt-get"} {
		if _, err := exec.LookPath(tool); err != nil {
			t.Skipf("%s is not installed: run deploy/setup", tool)
		}
	}
	if os.Geteuid() != 0 {
		t.Skip("building a template needs root")
	}
}

// downloads outlives the test, so that a second run fetches nothing.
func downloads(t *testing.T) string {
	t.Helper()
	dir, err := filepath.Abs("../../../.cache/image-test")
	require.NoError(t, err)
	return dir
}

func openStore(t *testing.T) *image.Store {
	t.Helper()
	s, err := image.Open(filepath.Join(t.TempDir(), "images"), slog.New(slog.NewTextHandler(io.Discard, nil)))
	require.NoError(t, err)
	return s
}

func baseRecipe(t *testing.T) image.Recipe {
	t.Helper()
	r, err := images.Recipe("base")
	require.NoError(t, err)
	return r
}

func run(t *testing.T, name string, args ...string) string {
	t.Helper()
	out, err := exec.CommandContext(t.Context(), name, args...).CombinedOutput()
	require.NoError(t, err, "%s %v: %s", name, args, out)
	return string(out)
}

func TestBuildBase(t *testing.T) {
	t.Parallel()
	needBuildTools(t)
	s := openStore(t)
	var steps []string
	tpl, err := s.Build(t.Context(), baseRecipe(t), image.BuildOptions{
		CacheDir: downloads(t),
		Report: func(p image.Progress) {
			if p.Done {
				steps = append(steps, p.Step)
				t.Logf("%-42s %5.1f s", p.Step, p.Elapsed.Seconds())
			}
		},
	})
	require.NoError(t, err, fault.HintOf(err))
	require.Len(t, steps, 6)
	require.NoError(t, tpl.Verify())
	requireNothingLeft(t, s)

	t.Run("content", func(t *testing.T) { t.Parallel(); checkContent(t, tpl) })
	t.Run("tree", func(t *testing.T) { t.Parallel(); checkTreeOfBase(t, tpl) })
	t.Run("sizes", func(t *testing.T) { t.Parallel(); checkSizes(t, tpl) })
	t.Run("kernel", func(t *testing.T) { t.Parallel(); checkKernel(t, tpl) })
	t.Run("grows", func(t *testing.T) { t.Parallel(); checkResize(t, tpl) })
	t.Run("boots", func(t *testing.T) { t.Parallel(); checkBoot(t, s, tpl) })
	t.Run("ensure", func(t *testing.T) {
		t.Parallel()
		again, err := s.Ensure(t.Context(), baseRecipe(t), image.BuildOptions{})
		require.NoError(t, err, "there already: nothing is built")
		require.Equal(t, tpl, again)
	})
}

func checkContent(t *testing.T, tpl image.Template) {
	cat := func(path string) string { return run(t, "debugfs", "-R", "cat "+path, tpl.DiskPath()) }
	require.Contains(t, cat("/etc/passwd"), "\nuser:x:1000:1000:")
	require.Contains(t, cat("/etc/passwd"), ":/home/user:/bin/bash")
	require.Contains(t, cat("/etc/shadow"), "\nuser:!:", "no password works")
	require.Contains(t, cat("/etc/sudoers.d/user"), "user ALL=(ALL:ALL) NOPASSWD: ALL")
	require.Contains(t, cat("/etc/apt/sources.list"), "deb.debian.org")
	require.Contains(t, cat("/etc/default/locale"), "LANG=C.UTF-8")
	stat := func(path string) string { return run(t, "debugfs", "-R", "stat "+path, tpl.DiskPath()) }
	for _, path := range []string{
		"/usr/bin/python3", "/usr/bin/curl", "/usr/bin/git", "/usr/bin/ps", "/usr/sbin/ip", "/usr/bin/bash",
		"/etc/ssl/certs/ca-certificates.crt", "/usr/lib/python3.11/encodings/__pycache__/utf_8.cpython-311.pyc",
	} {
		require.Contains(t, stat(path), "Inode:", path)
	}
	require.Regexp(t, `Mode: +04755`, stat("/usr/bin/sudo"))
	require.Regexp(t, `User: +1000 +Group: +1000`, stat("/home/user"))
	require.Regexp(t, `Mode: +0440`, stat("/etc/sudoers.d/user"))
	for _, path := range []string{"/etc/machine-id", "/etc/resolv.conf"} {
		require.Regexp(t, `Size: 0\b`, stat(path), path)
	}
	for _, path := range []string{
		"/etc/apt/apt.conf.d/99mmdebstrap", "/etc/apt/sources.list.d/0000mirrors.list", "/usr/share/man/man1",
	} {
		require.Contains(t, stat(path), "File not found", path)
	}
	require.NotContains(t, run(t, "debugfs", "-R", "ls /var/lib/apt/lists", tpl.DiskPath()), "Packages")
	require.NotContains(t, run(t, "debugfs", "-R", "ls /var/cache/apt/archives", tpl.DiskPath()), ".deb")
}

// checkTreeOfBase unpacks the tree and the disk, without a mount, and compares them.
func checkTreeOfBase(t *testing.T, tpl image.Template) {
	dir := t.TempDir()
	tree, disk := filepath.Join(dir, "tree"), filepath.Join(dir, "disk")
	require.NoError(t, os.Mkdir(disk, 0o700))
	run(t, "fsck.erofs", "--extract="+tree, tpl.TreePath())
	run(t, "debugfs", "-R", "rdump / "+disk, tpl.DiskPath())
	require.NoError(t, os.Remove(filepath.Join(disk, "lost+found")), "ext4's own")
	run(t, "diff", listing(t, disk), listing(t, tree))
	run(t, "diff", "--recursive", "--no-dereference", "--exclude=dev", disk, tree)
	for _, name := range []string{"proc", "sys", "dev", "run", "tmp"} {
		require.DirExists(t, filepath.Join(tree, name))
	}
	st, err := os.Stat(tpl.TreePath())
	require.NoError(t, err)
	t.Logf("tree %d MiB", st.Size()>>20)
}

// listing writes each file's permissions, owner, name and, of a link, target. The unpackers
// lose the bits above and, of /dev, the nodes.
func listing(t *testing.T, dir string) string {
	t.Helper()
	var list strings.Builder
	require.NoError(t, filepath.WalkDir(dir, func(path string, e os.DirEntry, err error) error {
		if err != nil || filepath.Dir(path) == filepath.Join(dir, "dev") {
			return err
		}
		var st unix.Stat_t
		if err := unix.Lstat(path, &st); err != nil {
			return err
		}
		target, _ := os.Readlink(path) // empty if no link
		_, err = fmt.Fprintf(&list, "%v %o %d:%d %s %s\n", e.Type(), st.Mode&0o777, st.Uid, st.Gid, strings.TrimPrefix(path, dir), target)
		return err
	}))
	name := dir + ".list"
	require.NoError(t, os.WriteFile(name, []byte(list.String()), 0o600))
	return name
}

func checkSizes(t *testing.T, tpl image.Template) {
	run(t, "e2fsck", "-fn", tpl.DiskPath())
	require.Less(t, tpl.DiskBytes, int64(512<<20))
	require.Less(t, tpl.SizeBytes, 2*tpl.DiskBytes, "free space takes none")
	require.Greater(t, tpl.SizeBytes, int64(150<<20))
	t.Logf("disk %d MiB, real use of the template %d MiB", tpl.DiskBytes>>20, tpl.SizeBytes>>20)
}

func checkKernel(t *testing.T, tpl image.Template) {
	require.FileExists(t, tpl.KernelPath())
	vmlinux := filepath.Join(t.TempDir(), "vmlinux")
	require.NoError(t, image.ELF(tpl.KernelPath(), vmlinux))
	run(t, "cmp", vmlinux, tpl.KernelELFPath())
	at := map[string]int{}
	for i, name := range tpl.ModuleNames() {
		at[strings.TrimSuffix(name, ".ko")] = i + 1
	}
	for _, edge := range [][2]string{
		{"failover", "net_failover"}, {"net_failover", "virtio_net"}, {"virtio_ring", "virtio_mmio"},
		{"virtio", "virtio_mmio"}, {"virtio_ring", "virtio_blk"}, {"virtio", "virtio_rng"},
	} {
		require.NotZero(t, at[edge[0]], edge[0])
		require.Less(t, at[edge[0]], at[edge[1]], "%s before %s", edge[0], edge[1])
	}
}

func checkResize(t *testing.T, tpl image.Template) {
	disk := filepath.Join(t.TempDir(), "disk")
	run(t, "cp", "--sparse=always", tpl.DiskPath(), disk)
	require.NoError(t, os.Chmod(disk, 0o600))
	require.NoError(t, os.Truncate(disk, 5<<30))
	run(t, "resize2fs", disk)
	run(t, "e2fsck", "-fn", disk)
	require.Regexp(t, `Block count: +1310720`, run(t, "dumpe2fs", "-h", disk))
}

// checkBoot boots the kernel with our initramfs and grows a mounted copy of the disk.
func checkBoot(t *testing.T, s *image.Store, tpl image.Template) {
	for _, tool := range []string{"qemu-system-x86_64", "qemu-img", "go"} {
		if _, err := exec.LookPath(tool); err != nil {
			t.Skipf("%s is not installed: run deploy/setup", tool)
		}
	}
	dir := t.TempDir()
	guest, initrd, disk := filepath.Join(dir, "guest"), filepath.Join(dir, "initrd"), filepath.Join(dir, "disk.qcow2")
	build := exec.CommandContext(t.Context(), "go", "build", "-o", guest, "./testdata/growinit")
	build.Env = append(os.Environ(), "CGO_ENABLED=0")
	out, err := build.CombinedOutput()
	require.NoError(t, err, string(out))
	require.NoError(t, s.Initrd(tpl, guest, tpl.BootConfig(image.BootConfig{ControlToken: "x"}), initrd))
	run(t, "qemu-img", "create", "-q", "-f", "qcow2", "-F", "raw", "-b", tpl.DiskPath(), disk, "128G")
	console := boot(t, tpl, initrd, disk)
	require.Regexp(t, `GROWINIT size_gb=12[5678] inodes=\d{7} rng=true`, console)
	t.Log(regexp.MustCompile(`GROWINIT grew in .*`).FindString(console))
	st, err := os.Stat(disk)
	require.NoError(t, err)
	require.Less(t, st.Size(), int64(64<<20), "growing to 128 GB wrote that much")
	t.Logf("overlay after growing to 128 GB: %d KiB", st.Size()>>10)
}

func boot(t *testing.T, tpl image.Template, initrd, disk string) string {
	t.Helper()
	ctx, cancel := context.WithTimeout(t.Context(), 90*time.Second)
	defer cancel()
	vm := exec.CommandContext(ctx, "qemu-system-x86_64", "-M", "microvm,accel=tcg", "-cpu", "max", "-m", "256",
		"-nodefaults", "-no-user-config", "-no-reboot", "-display", "none", "-serial", "stdio",
		"-kernel", tpl.KernelPath(), "-initrd", initrd,
		"-append", "console=ttyS0 quiet panic=-1 reboot=t lpj=4000000 tsc=reliable tsc_early_khz="+hostKHz(t),
		"-drive", "if=none,id=root,format=qcow2,file="+disk, "-device", "virtio-blk-device,drive=root",
		"-device", "virtio-rng-device")
	var console bytes.Buffer
	vm.Stdout, vm.Stderr = &console, &console
	require.NoError(t, vm.Run(), "%s", &console)
	return console.String()
}

func hostKHz(t *testing.T) string {
	t.Helper()
	info, err := os.ReadFile("/proc/cpuinfo")
	require.NoError(t, err)
	mhz := regexp.MustCompile(`cpu MHz\s*: (\d+)\.(\d{3})`).FindStringSubmatch(string(info))
	require.NotNil(t, mhz)
	return mhz[1] + mhz[2]
}

func TestCancelledBuildLeavesNothing(t *testing.T) {
	t.Parallel()
	needBuildTools(t)
	s := openStore(t)
	ctx, cancel := context.WithCancel(t.Context())
	defer cancel()
	var once sync.Once
	watched := make(chan struct{})
	_, err := s.Build(ctx, baseRecipe(t), image.BuildOptions{
		CacheDir: downloads(t),
		Report: func(p image.Progress) {
			if strings.Contains(p.Step, "packages") {
				// Cancelled when packages run scripts in the chroot: its mounts are there then.
				once.Do(func() { go func() { defer close(watched); cancelWhenChrooted(t, s, cancel) }() })
			}
		},
	})
	<-watched
	require.Equal(t, fault.Canceled, fault.KindOf(err), "%v", err)
	requireNothingLeft(t, s)
	all, err := s.List()
	require.NoError(t, err)
	require.Empty(t, all)
}

// cancelWhenChrooted waits until a process of the build has its root inside the store.
func cancelWhenChrooted(t *testing.T, s *image.Store, cancel func()) {
	deadline := time.Now().Add(2 * time.Minute)
	for time.Now().Before(deadline) {
		if len(processesIn(s.Dir(), "root")) > 0 {
			cancel()
			return
		}
		time.Sleep(20 * time.Millisecond) // there is no event to wait for
	}
	t.Error("no process of the build ever ran in the chroot")
	cancel()
}

func TestBuildSaysWhichPackageIsMissing(t *testing.T) {
	t.Parallel()
	needBuildTools(t)
	s := openStore(t)
	r := baseRecipe(t)
	r.Packages = append(r.Packages, "no-such-package-anywhere")
	_, err := s.Build(t.Context(), r, image.BuildOptions{CacheDir: downloads(t)})
	require.ErrorContains(t, err, "no-such-package-anywhere")
	require.ErrorContains(t, err, "build template base")
	require.NotEmpty(t, fault.HintOf(err))
	requireNothingLeft(t, s)
}

func TestRecipesAreChecked(t *testing.T) {
	t.Parallel()
	for name, change := range map[string]func(*image.Recipe){
		"template name": func(r *image.Recipe) { r.Name = "../x" },
		"packages":      func(r *image.Recipe) { r.Packages = append(r.Packages, "--help") },
		"default_user":  func(r *image.Recipe) { r.DefaultUser = "a b" },
		"suite":         func(r *image.Recipe) { r.Suite = "-x" },
		"modules":       func(r *image.Recipe) { r.Modules = nil },
		"mirrors":       func(r *image.Recipe) { r.Mirrors = nil },
	} {
		r := baseRecipe(t)
		change(&r)
		err := r.Validate()
		require.Equal(t, fault.Invalid, fault.KindOf(err), name)
		require.ErrorContains(t, err, name)
	}
	_, err := images.Recipe("nope")
	require.Equal(t, fault.NotFound, fault.KindOf(err))
	require.Contains(t, fault.HintOf(err), "base")
}

// requireNothingLeft looks for a build's processes, mounts and stages.
func requireNothingLeft(t *testing.T, s *image.Store) {
	t.Helper()
	require.Empty(t, processesIn(s.Dir(), "root", "cwd"), "processes")
	mounts, err := os.ReadFile("/proc/self/mountinfo")
	require.NoError(t, err)
	require.NotContains(t, string(mounts), s.Dir())
	left, err := os.ReadDir(filepath.Join(s.Dir(), "stage"))
	require.NoError(t, err)
	require.Empty(t, left)
}

// processesIn are the processes whose root or working directory lies in dir.
func processesIn(dir string, links ...string) []string {
	var found []string
	for _, link := range links {
		paths, _ := filepath.Glob("/proc/[0-9]*/" + link)
		for _, path := range paths {
			if at, err := os.Readlink(path); err == nil && strings.HasPrefix(at, dir+"/") {
				found = append(found, path+" -> "+at)
			}
		}
	}
	return found
}
