// Package sample holds tests that end in every way there is; the lane's own tests run them.
package sample

import (
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"syscall"
	"testing"
	"time"
	"unsafe"

	"github.com/stretchr/testify/require"
	"golang.org/x/sys/unix"
)

func TestPass(t *testing.T) {
	fmt.Println("on stdout")
	fmt.Fprintln(os.Stderr, "on stderr")
	require.Equal(t, "passed on", os.Getenv("ROOST_SAMPLE"))
	require.Equal(t, "named", os.Getenv("SAMPLE_NAMED"))
	require.Empty(t, os.Getenv("SAMPLE_OTHER"))
	text, err := os.ReadFile("testdata/file.txt")
	require.NoError(t, err)
	require.Equal(t, "of the package\n", string(text))
}

func TestSkip(t *testing.T) { t.Skip("needs what is not there") }

func TestFail(t *testing.T) { t.Error("it is wrong") }

func TestPanic(*testing.T) { panic("boom") }

func TestExit(*testing.T) { os.Exit(3) }

func TestHang(t *testing.T) { <-t.Context().Done(); select {} }

// TestStopped cannot even panic when its time is over.
func TestStopped(t *testing.T) {
	fmt.Println("stops")
	require.NoError(t, unix.Kill(os.Getpid(), unix.SIGSTOP))
}

func TestKilled(t *testing.T) {
	require.NoError(t, unix.Kill(os.Getpid(), unix.SIGKILL))
	select {}
}

func TestKernelPanic(t *testing.T) {
	require.NoError(t, os.WriteFile("/proc/sysrq-trigger", []byte("c"), 0))
	select {}
}

func TestLeaves(t *testing.T) {
	require.NoError(t, os.Mkdir("/mnt/left", 0o700))
	require.NoError(t, unix.Mount("tmpfs", "/mnt/left", "tmpfs", 0, ""))
	cmd := exec.Command("/proc/self/exe", "-test.run=^TestSleeper$")
	cmd.Env = []string{"SLEEPER=1"}
	cmd.Stdout = os.Stdout // holds the lane's pipe
	cmd.SysProcAttr = &syscall.SysProcAttr{Setsid: true}
	require.NoError(t, cmd.Start())
}

func TestSleeper(t *testing.T) {
	if os.Getenv("SLEEPER") == "" {
		t.Skip("a part of TestLeaves")
	}
	time.Sleep(time.Hour)
}

// TestTargets asks the kernel for its device-mapper targets, by ioctl, and makes a loop device.
func TestTargets(t *testing.T) {
	require.Subset(t, targets(t), []string{"snapshot", "snapshot-origin", "zero", "linear", "error", "flakey", "delay"})
	f, err := os.Create(filepath.Join(t.TempDir(), "image"))
	require.NoError(t, err)
	defer f.Close()
	require.NoError(t, f.Truncate(4<<20))
	control, err := os.OpenFile("/dev/loop-control", os.O_RDWR, 0)
	require.NoError(t, err)
	defer control.Close()
	n, err := unix.IoctlRetInt(int(control.Fd()), unix.LOOP_CTL_GET_FREE)
	require.NoError(t, err)
	loop, err := os.OpenFile(fmt.Sprintf("/dev/loop%d", n), os.O_RDWR, 0)
	require.NoError(t, err)
	defer loop.Close()
	require.NoError(t, unix.IoctlSetInt(int(loop.Fd()), unix.LOOP_SET_FD, int(f.Fd())))
	size, err := unix.IoctlGetInt(int(loop.Fd()), unix.BLKGETSIZE64)
	require.NoError(t, err)
	require.Equal(t, 4<<20, size)
	require.NoError(t, unix.IoctlSetInt(int(loop.Fd()), unix.LOOP_CLR_FD, 0))
}

// targets is DM_LIST_VERSIONS: struct dm_ioctl, then a list of struct dm_target_versions.
func targets(t *testing.T) []string {
	const (
		header, size    = 312, 16 << 10
		dmListVersions  = 0xc138fd0d
		majorV, dmStart = 4, header
	)
	control, err := os.OpenFile("/dev/mapper/control", os.O_RDWR, 0)
	require.NoError(t, err)
	defer control.Close()
	b := make([]byte, size)
	*(*uint32)(unsafe.Pointer(&b[0])) = majorV
	*(*uint32)(unsafe.Pointer(&b[12])) = size
	*(*uint32)(unsafe.Pointer(&b[16])) = dmStart
	_, _, errno := unix.Syscall(unix.SYS_IOCTL, control.Fd(), dmListVersions, uintptr(unsafe.Pointer(&b[0])))
	require.Zero(t, errno)
	var out []string
	for at := header; ; {
		next := int(*(*uint32)(unsafe.Pointer(&b[at])))
		out = append(out, unix.ByteSliceToString(b[at+16:]))
		if next == 0 {
			return out
		}
		at += next
	}
}

// TestSystem is what every shape has.
func TestSystem(t *testing.T) {
	for _, controller := range []string{"cpu", "memory", "pids", "io"} {
		list, err := os.ReadFile("/sys/fs/cgroup/cgroup.subtree_control")
		require.NoError(t, err)
		require.Contains(t, string(list), controller)
	}
	var fs unix.Statfs_t
	require.NoError(t, unix.Statfs(t.TempDir(), &fs))
	require.EqualValues(t, unix.EXT4_SUPER_MAGIC, fs.Type)
	require.Greater(t, int64(fs.Bavail)*fs.Bsize, int64(5<<30))
	out, err := exec.Command("mke2fs", "-V").CombinedOutput()
	require.NoError(t, err, string(out))
	// Nobody can leave the kernel's first root by pivot_root; the jailer does leave it.
	cmd := exec.Command("/proc/self/exe", "-test.run=^TestPivot$")
	cmd.Env = []string{"PIVOT=1"}
	cmd.SysProcAttr = &syscall.SysProcAttr{Unshareflags: syscall.CLONE_NEWNS}
	out, err = cmd.CombinedOutput()
	require.NoError(t, err, string(out))
}

func TestPivot(t *testing.T) {
	if os.Getenv("PIVOT") == "" {
		t.Skip("a part of TestSystem")
	}
	require.NoError(t, unix.Mount("", "/", "", unix.MS_REC|unix.MS_SLAVE, ""))
	require.NoError(t, unix.Mount("tmpfs", "/mnt", "tmpfs", 0, ""))
	require.NoError(t, os.Mkdir("/mnt/old", 0o700))
	require.NoError(t, unix.PivotRoot("/mnt", "/mnt/old"))
}

// TestHost is what the shape host adds.
func TestHost(t *testing.T) {
	for _, node := range []string{"/dev/net/tun", "/dev/userfaultfd"} {
		f, err := os.OpenFile(node, os.O_RDWR, 0)
		require.NoError(t, err)
		require.NoError(t, f.Close())
	}
	require.EqualValues(t, exitHlt, runNested(t), "a vCPU ran to its hlt")
	text, err := os.ReadFile("/mnt/tree/file.txt")
	require.NoError(t, err, "a tree is mounted")
	require.Equal(t, "of the package\n", string(text))
	text, err = os.ReadFile("/etc/hostname")
	require.NoError(t, err)
	require.Equal(t, "of the package\n", string(text), "a file replaces the lane's own")
	out, err := exec.Command("qemu-system-x86_64", "-accel", "help").CombinedOutput()
	require.NoError(t, err, string(out))
}
