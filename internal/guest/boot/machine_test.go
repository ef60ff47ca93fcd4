package boot

import (
	"encoding/json"
	"fmt"
	"net"
	"net/http"
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/cavaliergopher/cpio"
	"github.com/stretchr/testify/require"
	"golang.org/x/sys/unix"
)

const (
	fsMB   = 48 // the file system as made
	diskMB = 96 // its device, for Grow
)

// modules of Debian's cloud kernel for a virtio-mmio machine, in the order they need.
var modules = []string{
	"net/core/failover.ko", "drivers/net/net_failover.ko", "drivers/virtio/virtio_ring.ko", "drivers/virtio/virtio.ko",
	"drivers/virtio/virtio_mmio.ko", "drivers/block/virtio_blk.ko", "drivers/net/virtio_net.ko",
}

// machine is a QEMU guest with user networking.
type machine struct {
	t       *testing.T
	url     string
	log     string
	started time.Time
	exited  chan struct{}
}

func startVM(t *testing.T, c Config) *machine {
	t.Helper()
	for _, tool := range []string{"qemu-system-x86_64", "mke2fs", "busybox", "apt-get", "dpkg-deb"} {
		if _, err := exec.LookPath(tool); err != nil {
			t.Skip(tool + " is missing: apt-get install qemu-system-x86 e2fsprogs busybox-static")
		}
	}
	dir := t.TempDir()
	kernel, moduleDir := debianKernel(t)
	initrd := filepath.Join(dir, "initrd")
	writeInitramfs(t, initrd, moduleDir, c)
	disk := makeDisk(t, dir)
	port := freePort(t)
	m := &machine{t: t, url: "http://127.0.0.1:" + port, log: filepath.Join(dir, "console"), exited: make(chan struct{})}
	m.boot(kernel, initrd, disk, port)
	return m
}

func (m *machine) boot(kernel, initrd, disk, port string) {
	khz := tscKHz(m.t)
	cmdline := "console=ttyS0 quiet panic=-1 reboot=t lpj=4000000 tsc=reliable tsc_early_khz=" + khz
	cmd := exec.Command("qemu-system-x86_64", "-M", "microvm", "-accel", "tcg,tb-size=64", "-cpu", "max", "-m", "256", "-smp", "1",
		"-nodefaults", "-no-user-config", "-no-reboot", "-display", "none",
		"-kernel", kernel, "-initrd", initrd, "-append", cmdline, "-serial", "file:"+m.log,
		"-drive", "id=root,if=none,format=raw,file="+disk, "-device", "virtio-blk-device,drive=root",
		"-netdev", "user,id=net,hostfwd=tcp:127.0.0.1:"+port+"-10.0.2.15:49983", "-device", "virtio-net-device,netdev=net")
	cmd.SysProcAttr = &unix.SysProcAttr{Pdeathsig: unix.SIGKILL}
	cmd.Stderr = os.Stderr
	m.started = time.Now()
	require.NoError(m.t, cmd.Start())
	go func() {
		_ = cmd.Wait()
		close(m.exited)
	}()
	m.t.Cleanup(func() {
		_ = cmd.Process.Kill()
		<-m.exited
	})
}

func (m *machine) waitHealthy() {
	m.t.Helper()
	deadline := time.Now().Add(90 * time.Second)
	client := &http.Client{Timeout: 5 * time.Second}
	for time.Now().Before(deadline) {
		res, err := client.Get(m.url + "/health")
		if err == nil {
			_ = res.Body.Close()
			require.Equal(m.t, http.StatusNoContent, res.StatusCode)
			return
		}
		select {
		case <-m.exited:
			require.Fail(m.t, "QEMU ended", "%s", m.console())
		case <-time.After(20 * time.Millisecond):
		}
	}
	require.Fail(m.t, "no answer from the guest", "%s", m.console())
}

var guestBinary = sync.OnceValues(func() ([]byte, error) {
	dir, err := os.MkdirTemp("", "roost-guest-build-")
	if err != nil {
		return nil, err
	}
	defer func() { _ = os.RemoveAll(dir) }()
	build := exec.Command("go", "build", "-trimpath", "-ldflags", "-s -w -X main.version=vmtest", "-o", dir+"/roost-guest", "github.com/roosthq/roost/cmd/roost-guest")
	build.Env = append(os.Environ(), "CGO_ENABLED=0")
	if out, err := build.CombinedOutput(); err != nil {
		return nil, fmt.Errorf("%w: %s", err, out)
	}
	return os.ReadFile(dir + "/roost-guest")
})

func writeInitramfs(t *testing.T, path, moduleDir string, c Config) {
	t.Helper()
	binary, err := guestBinary()
	require.NoError(t, err)
	f, err := os.Create(path)
	require.NoError(t, err)
	defer func() { require.NoError(t, f.Close()) }()
	w := cpio.NewWriter(f)
	add := func(name string, mode cpio.FileMode, data []byte) {
		require.NoError(t, w.WriteHeader(&cpio.Header{Name: name, Mode: mode, Size: int64(len(data))}))
		_, err := w.Write(data)
		require.NoError(t, err)
	}
	for _, dir := range []string{"dev", "proc", "sys", "roost", "roost/modules"} {
		add(dir, cpio.TypeDir|0o755, nil)
	}
	add("init", cpio.TypeReg|0o755, binary)
	c.Modules = nil
	for _, m := range modules {
		data, err := os.ReadFile(filepath.Join(moduleDir, m))
		require.NoError(t, err)
		add("roost/modules/"+filepath.Base(m), cpio.TypeReg|0o644, data)
		c.Modules = append(c.Modules, filepath.Base(m))
	}
	config, err := json.Marshal(c)
	require.NoError(t, err)
	add("roost/boot.json", cpio.TypeReg|0o600, config)
	require.NoError(t, w.Close())
}

// makeDisk makes an ext4 image with busybox and a user, smaller than its file.
func makeDisk(t *testing.T, dir string) string {
	t.Helper()
	tree := filepath.Join(dir, "tree")
	for _, d := range []string{"bin", "etc", "home/user", "proc", "sys", "dev", "run", "tmp", "root"} {
		require.NoError(t, os.MkdirAll(filepath.Join(tree, d), 0o755))
	}
	require.NoError(t, os.Chown(filepath.Join(tree, "home/user"), 1000, 1000))
	busybox, err := exec.LookPath("busybox")
	require.NoError(t, err)
	data, err := os.ReadFile(busybox)
	require.NoError(t, err)
	require.NoError(t, os.WriteFile(filepath.Join(tree, "bin/busybox"), data, 0o755))
	for _, name := range []string{"sh", "echo", "cat", "id", "whoami", "hostname", "sleep", "date", "test", "grep", "wc", "kill"} {
		require.NoError(t, os.Symlink("busybox", filepath.Join(tree, "bin", name)))
	}
	require.NoError(t, os.WriteFile(tree+"/etc/passwd", []byte("root:x:0:0::/root:/bin/sh\nuser:x:1000:1000::/home/user:/bin/sh\n"), 0o644))
	require.NoError(t, os.WriteFile(tree+"/etc/group", []byte("root:x:0:\nuser:x:1000:\n"), 0o644))
	image := filepath.Join(dir, "disk.img")
	out, err := exec.Command("mke2fs", "-q", "-t", "ext4", "-d", tree, image, strconv.Itoa(fsMB)+"M").CombinedOutput()
	require.NoError(t, err, "%s", out)
	require.NoError(t, os.Truncate(image, diskMB<<20))
	return image
}

// debianKernel unpacks Debian's cloud kernel, once, without installing it.
func debianKernel(t *testing.T) (vmlinuz, moduleDir string) {
	t.Helper()
	cache := filepath.Join(repository(t), ".cache", "guest-test")
	require.NoError(t, os.MkdirAll(cache, 0o755))
	lock, err := os.Create(filepath.Join(cache, "lock"))
	require.NoError(t, err)
	defer func() { _ = lock.Close() }()
	require.NoError(t, unix.Flock(int(lock.Fd()), unix.LOCK_EX))
	dir := filepath.Join(cache, "kernel")
	if _, err := os.Stat(dir); err != nil {
		downloadKernel(t, dir)
	}
	kernels, _ := filepath.Glob(dir + "/boot/vmlinuz-*")
	trees, _ := filepath.Glob(dir + "/lib/modules/*/kernel")
	require.Len(t, kernels, 1)
	require.Len(t, trees, 1)
	return kernels[0], trees[0]
}

func downloadKernel(t *testing.T, dir string) {
	t.Helper()
	out, err := exec.Command("apt-cache", "depends", "linux-image-cloud-amd64").Output()
	require.NoError(t, err)
	_, pkg, found := strings.Cut(string(out), "Depends: ")
	require.True(t, found, "run apt-get update")
	temp := t.TempDir()
	download := exec.Command("apt-get", "-qq", "-o", "APT::Sandbox::User=root", "download", strings.Fields(pkg)[0])
	download.Dir = temp
	msg, err := download.CombinedOutput()
	require.NoError(t, err, "%s", msg)
	debs, _ := filepath.Glob(temp + "/*.deb")
	require.Len(t, debs, 1)
	partial := dir + ".partial"
	require.NoError(t, os.RemoveAll(partial))
	msg, err = exec.Command("dpkg-deb", "-x", debs[0], partial).CombinedOutput()
	require.NoError(t, err, "%s", msg)
	require.NoError(t, os.Rename(partial, dir))
}

func repository(t *testing.T) string {
	t.Helper()
	dir, err := os.Getwd()
	require.NoError(t, err)
	for ; dir != "/"; dir = filepath.Dir(dir) {
		if _, err := os.Stat(filepath.Join(dir, "go.mod")); err == nil {
			return dir
		}
	}
	require.Fail(t, "no go.mod above the test")
	return ""
}

// tscKHz: the kernel cannot calibrate its timer under TCG on a busy host, so it is told.
func tscKHz(t *testing.T) string {
	t.Helper()
	data, err := os.ReadFile("/proc/cpuinfo")
	require.NoError(t, err)
	_, rest, _ := strings.Cut(string(data), "cpu MHz")
	value, _, _ := strings.Cut(strings.TrimLeft(rest, "\t :"), "\n")
	mhz, err := strconv.ParseFloat(value, 64)
	require.NoError(t, err)
	return strconv.Itoa(int(mhz * 1000))
}

func freePort(t *testing.T) string {
	t.Helper()
	l, err := net.Listen("tcp", "127.0.0.1:0")
	require.NoError(t, err)
	defer func() { _ = l.Close() }()
	_, port, err := net.SplitHostPort(l.Addr().String())
	require.NoError(t, err)
	return port
}
