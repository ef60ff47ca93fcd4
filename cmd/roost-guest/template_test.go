package main

import (
	"bytes"
	"context"
	"crypto/sha256"
	"encoding/hex"
	"encoding/json"
	"fmt"
	"io"
	"log/slog"
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/stretchr/testify/require"
	"golang.org/x/sys/unix"

	"github.com/roosthq/roost/internal/guest/export"
	"github.com/roosthq/roost/internal/host/image"
)

// These tests hold the two ends of the export together: what the guest writes is what the host
// makes a template of.

const capability = "\x01\x00\x00\x02\x00\x20\x00\x00\x00\x00\x00\x00\x00\x00\x00\x00\x00\x00\x00\x00" // cap_net_raw=ep

func need(t *testing.T, tools ...string) {
	t.Helper()
	require.Zero(t, os.Geteuid(), "needs root")
	for _, tool := range tools {
		if _, err := exec.LookPath(tool); err != nil {
			t.Skipf("%s is not installed: run deploy/setup", tool)
		}
	}
}

func run(t *testing.T, name string, args ...string) string {
	t.Helper()
	out, err := exec.CommandContext(t.Context(), name, args...).CombinedOutput()
	require.NoError(t, err, "%s %v: %s", name, args, out)
	return string(out)
}

// source is a template that gives a kernel.
func source(t *testing.T) image.Template {
	t.Helper()
	path := filepath.Join(t.TempDir(), "vmlinuz")
	require.NoError(t, os.WriteFile(path, []byte("kernel"), 0o400))
	sum := sha256.Sum256([]byte("kernel"))
	return image.Template{
		DefaultUser: "user", KernelVersion: "6.1",
		Kernel: image.File{Name: "vmlinuz", Path: path, SizeBytes: 6, SHA256: hex.EncodeToString(sum[:])},
	}
}

func openStore(t *testing.T) *image.Store {
	t.Helper()
	s, err := image.Open(filepath.Join(t.TempDir(), "images"), slog.New(slog.DiscardHandler))
	require.NoError(t, err)
	return s
}

// made exports root and makes a template of it.
func made(t *testing.T, root, name string) image.Template {
	t.Helper()
	read, write := io.Pipe()
	go func() { _ = write.CloseWithError(export.Write(t.Context(), write, root)) }()
	tpl, err := openStore(t).FromTree(t.Context(), image.FromTreeRequest{
		Name: name, By: "test", Source: source(t), Tar: read,
		Report: func(p image.Progress) {
			if p.Done {
				t.Logf("%-32s %5.2f s", p.Step, p.Elapsed.Seconds())
			}
		},
	})
	require.NoError(t, err)
	require.NoError(t, tpl.Verify())
	return tpl
}

func used(t *testing.T, path string) int64 {
	t.Helper()
	var st syscall.Stat_t
	require.NoError(t, syscall.Stat(path, &st))
	return st.Blocks * 512
}

func TestTreeBecomesATemplate(t *testing.T) {
	t.Parallel()
	need(t, "mke2fs", "debugfs", "mkfs.erofs", "fsck.erofs")
	root := manyKinds(t)
	tpl := made(t, root, "kinds")
	require.Equal(t, "test", tpl.Made.By)
	dir := t.TempDir()
	disk, tree := filepath.Join(dir, "disk"), filepath.Join(dir, "tree")
	require.NoError(t, os.Mkdir(disk, 0o700))
	run(t, "debugfs", "-R", "rdump / "+disk, tpl.DiskPath())
	run(t, "fsck.erofs", "--extract="+tree, tpl.TreePath())
	for _, got := range []string{disk, tree} {
		for _, name := range []string{"dir/file", "dir/hard", "ping", "big", "deep/\xff odd name"} {
			want, err := os.ReadFile(filepath.Join(root, name))
			require.NoError(t, err)
			have, err := os.ReadFile(filepath.Join(got, name))
			require.NoError(t, err, got)
			require.True(t, bytes.Equal(want, have), "%s of %s", name, got)
		}
		target, err := os.Readlink(filepath.Join(got, "dir/soft"))
		require.NoError(t, err)
		require.Equal(t, "../nowhere", target)
		for name, text := range map[string]string{"etc/machine-id": "", "etc/hostname": "roost\n"} {
			have, err := os.ReadFile(filepath.Join(got, name))
			require.NoError(t, err)
			require.Equal(t, text, string(have))
		}
	}
	checkDisk(t, tpl.DiskPath())
	var file syscall.Stat_t
	require.NoError(t, syscall.Stat(filepath.Join(tree, "dir/file"), &file))
	require.Equal(t, []uint32{1000, 70000}, []uint32{file.Uid, file.Gid})
	require.Equal(t, then.UnixNano(), file.Mtim.Nano(), "in gVisor to the nanosecond")
	require.NoError(t, syscall.Stat(filepath.Join(tree, "new"), &file))
	require.Equal(t, lately.Unix(), file.Mtim.Sec, "no time is clamped")
}

// checkDisk looks at what unpacking loses.
func checkDisk(t *testing.T, disk string) {
	t.Helper()
	ask := func(request string) string { return run(t, "debugfs", "-R", request, disk) }
	require.Regexp(t, `Mode: +06751`, ask("stat dir/file"))
	require.Regexp(t, `User: +1000 +Group: +70000`, ask("stat dir/file"))
	require.Regexp(t, `Links: 2`, ask("stat dir/file"))
	require.Contains(t, ask("stat dir/file"), "mtime: 0x"+strconv.FormatInt(then.Unix(), 16))
	require.Contains(t, ask("stat new"), "mtime: 0x"+strconv.FormatInt(lately.Unix(), 16))
	require.Contains(t, ask("stat dir"), "mtime: 0x"+strconv.FormatInt(then.Unix(), 16), "a directory's")
	require.Regexp(t, `Mode: +01777`, ask("stat sticky"))
	require.Regexp(t, `Type: FIFO`, ask("stat fifo"))
	require.Regexp(t, `(?s)Type: character special.*01:03`, ask("stat null"))
	value := filepath.Join(t.TempDir(), "value")
	for name, want := range map[string]string{"user.mine": "of the user", "security.capability": capability} {
		ask("ea_get -f " + value + " ping " + name)
		got, err := os.ReadFile(value)
		require.NoError(t, err)
		require.Equal(t, want, string(got), name)
	}
	run(t, "e2fsck", "-fn", disk)
}

var (
	then   = time.Unix(1_500_000_000, 123_456_789)
	lately = time.Unix(1_760_000_000, 0) // after the date that built templates are clamped to
)

// manyKinds is a root with one of everything.
func manyKinds(t *testing.T) string {
	t.Helper()
	root := filepath.Join(t.TempDir(), "root")
	for _, dir := range []string{"dir", "deep", "etc", "sticky"} {
		require.NoError(t, os.MkdirAll(filepath.Join(root, dir), 0o755))
	}
	path := func(name string) string { return filepath.Join(root, name) }
	for name, content := range map[string]string{
		"dir/file": "content", "ping": "#!", "big": strings.Repeat("0123456789abcdef", 100_000), "deep/\xff odd name": "odd",
		"etc/machine-id": "secret\n", "etc/hostname": "mine\n", "new": "",
	} {
		require.NoError(t, os.WriteFile(path(name), []byte(content), 0o644))
	}
	require.NoError(t, os.Link(path("dir/file"), path("dir/hard")))
	require.NoError(t, os.Symlink("../nowhere", path("dir/soft")))
	require.NoError(t, os.Chown(path("dir/file"), 1000, 70000))
	require.NoError(t, unix.Chmod(path("dir/file"), 0o6751))
	require.NoError(t, unix.Chmod(path("sticky"), 0o1777))
	require.NoError(t, unix.Mkfifo(path("fifo"), 0o600))
	require.NoError(t, unix.Mknod(path("null"), unix.S_IFCHR|0o666, int(unix.Mkdev(1, 3))))
	require.NoError(t, unix.Setxattr(path("ping"), "user.mine", []byte("of the user"), 0))
	require.NoError(t, unix.Setxattr(path("ping"), "security.capability", []byte(capability), 0))
	require.NoError(t, os.Chtimes(path("new"), lately, lately))
	require.NoError(t, os.Chtimes(path("dir/file"), then, then))
	require.NoError(t, os.Chtimes(path("dir"), then, then))
	return root
}

// sparseRoot has one file of a size with ten pieces of data in it, under two names.
func sparseRoot(t *testing.T, size, piece int64) (root, file string) {
	t.Helper()
	root = filepath.Join(t.TempDir(), "root")
	file = filepath.Join(root, "data/sparse")
	require.NoError(t, os.MkdirAll(filepath.Dir(file), 0o755))
	f, err := os.Create(file)
	require.NoError(t, err)
	data := make([]byte, piece)
	for i := range int64(10) {
		for j := range data {
			data[j] = byte(int(i)*7 + j*13 + j>>9 + 1)
		}
		_, err := f.WriteAt(data, i*(size/10)+4096)
		require.NoError(t, err)
	}
	require.NoError(t, f.Truncate(size))
	require.NoError(t, f.Close())
	require.NoError(t, os.Link(file, filepath.Join(root, "data/again")))
	require.NoError(t, os.Chown(file, 1000, 1000))
	return root, file
}

// TestSparseTreeIsSmall: 5 GB with 200 MB in them take at most 1.2 times 200 MB in each form, at any
// size of disk.
func TestSparseTreeIsSmall(t *testing.T) {
	t.Parallel()
	need(t, "mke2fs", "resize2fs", "mkfs.erofs")
	root, file := sparseRoot(t, 5<<30, 20<<20)
	content := used(t, file)
	tpl := made(t, root, "sparse")
	require.Less(t, tpl.DiskBytes, int64(600<<20), "it fits on the default disk")
	for name, path := range map[string]string{"disk": tpl.DiskPath(), "tree": tpl.TreePath()} {
		got := used(t, path)
		t.Logf("%s: %d MB in use for %d MB written, %.3f", name, got>>20, content>>20, float64(got)/float64(content))
		require.LessOrEqual(t, float64(got), 1.2*float64(content), name)
	}
	disk := filepath.Join(t.TempDir(), "disk")
	run(t, "cp", "--sparse=always", tpl.DiskPath(), disk)
	require.NoError(t, os.Chmod(disk, 0o600))
	require.NoError(t, os.Truncate(disk, 5<<30))
	run(t, "resize2fs", disk)
	run(t, "e2fsck", "-fn", disk)
}

// TestSparseTreeReadsTheSame: as ext4, as EROFS by its own tools, and by gVisor.
func TestSparseTreeReadsTheSame(t *testing.T) {
	t.Parallel()
	need(t, "mke2fs", "debugfs", "mkfs.erofs", "fsck.erofs", "busybox")
	root, file := sparseRoot(t, 64<<20+77, 100_001)
	busybox, err := exec.LookPath("busybox")
	require.NoError(t, err)
	run(t, "cp", busybox, filepath.Join(root, "busybox"))
	tpl := made(t, root, "sparse")
	tree := filepath.Join(t.TempDir(), "tree")
	run(t, "fsck.erofs", "--extract="+tree, tpl.TreePath())
	run(t, "cmp", file, filepath.Join(tree, "data/again"))
	run(t, "cmp", file, filepath.Join(tree, "data/sparse"))
	run(t, "sh", "-c", `debugfs -R "cat data/sparse" "$1" 2>/dev/null | cmp - "$2"`, "sh", tpl.DiskPath(), file)
	sum, _, _ := strings.Cut(run(t, "md5sum", file), " ")
	said := inGVisor(t, tpl.TreePath(), "/busybox", "sh", "-c", "/busybox md5sum /data/sparse /data/again; /busybox stat -c '%u %h %s' /data/again")
	require.Equal(t, fmt.Sprintf("%[1]s  /data/sparse\n%[1]s  /data/again\n1000 2 %d\n", sum, 64<<20+77), said)
}

// inGVisor runs a program on a tree to its end.
func inGVisor(t *testing.T, tree string, args ...string) string {
	t.Helper()
	runsc, err := filepath.Abs("../../bin/runsc")
	require.NoError(t, err)
	if given := os.Getenv("ROOST_RUNSC"); given != "" {
		runsc = given
	}
	require.FileExists(t, runsc, "make runsc builds it")
	dir, err := os.MkdirTemp("/tmp", "rg") //nolint:usetesting // short: runsc's socket lies below it
	require.NoError(t, err)
	t.Cleanup(func() { require.NoError(t, os.RemoveAll(dir)) })
	require.NoError(t, os.Mkdir(dir+"/root", 0o755))
	type object = map[string]any
	spec, err := json.Marshal(object{
		"ociVersion": "1.0.0", "root": object{"path": dir + "/root"},
		"process": object{"args": args, "cwd": "/", "user": object{"uid": 0, "gid": 0}},
		"mounts":  []object{{"destination": "/proc", "type": "proc", "source": "proc"}, {"destination": "/run", "type": "bind", "source": dir, "options": []string{"ro", "bind"}}},
		"linux":   object{"namespaces": []object{{"type": "pid"}, {"type": "mount"}, {"type": "network"}}},
		"annotations": object{
			"dev.gvisor.spec.rootfs.source": tree, "dev.gvisor.spec.rootfs.type": "erofs", "dev.gvisor.spec.rootfs.overlay": "self",
		},
	})
	require.NoError(t, err)
	require.NoError(t, os.WriteFile(dir+"/config.json", spec, 0o600))
	global := []string{"--root=" + dir + "/state", "--platform=systrap", "--network=none", "--ignore-cgroups", "--overlay2=none", "--gofer-network-namespace=new"}
	t.Cleanup(func() {
		_ = exec.CommandContext(context.Background(), runsc, append(global, "delete", "--force", "s")...).Run()
	})
	return run(t, runsc, append(global, "run", "--bundle="+dir, "s")...)
}
