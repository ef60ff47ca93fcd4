package guest_test

import (
	"bytes"
	"context"
	"encoding/json"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/stretchr/testify/require"
)

// TestGuestInGVisor runs the suites of the guest's packages, and the guest itself as PID 1, on
// gVisor's kernel: on an EROFS image under an overlay, as package runtime/gvisor has them.
func TestGuestInGVisor(t *testing.T) {
	t.Parallel()
	g := newGVisor(t)
	for _, suite := range []string{"server", "cgroup", "reaper", "restore", "export"} {
		t.Run(suite, func(t *testing.T) {
			t.Parallel()
			out := g.sandbox(t, programs+"/"+suite+".test", "-test.v", "-test.timeout=5m").run()
			require.True(t, strings.HasSuffix(strings.TrimSpace(out), "PASS"), "%s", failures(out))
			t.Log(skips(out))
		})
	}
	t.Run("PID 1", func(t *testing.T) {
		t.Parallel()
		s := g.sandbox(t, programs+"/roost-guest", "--no-init", "--hostname", "booted", "--dns", "192.0.2.1")
		s.spec.Process.Env = append(s.spec.Process.Env, "ROOST_CONTROL_TOKEN="+bootToken)
		s.start("run")
		t.Log(s.exec("life"))
		// What is frozen is continued in a copy: a copy's guest knows the stopped ones again.
		t.Log(s.exec("freeze"))
		image := filepath.Join(g.dir, "image")
		s.do("checkpoint", "--leave-running", "--image-path="+image, "s")
		copied := g.sandbox(t, s.spec.Process.Args...)
		copied.spec.Process.Env = s.spec.Process.Env
		copied.start("restore", "--image-path="+image)
		t.Log(copied.exec("thaw"))
		t.Log(s.exec("thaw"))
	})
}

// skips are the tests that were skipped, each with its reason.
func skips(out string) string {
	var said []string
	for line := range strings.Lines(out) {
		if strings.Contains(line, "gVisor cannot") || strings.Contains(line, "--- SKIP") || strings.Contains(line, "missing") {
			said = append(said, strings.TrimSpace(line))
		}
	}
	return strings.Join(said, "\n")
}

// failures leaves out what passed.
func failures(out string) string {
	var said []string
	for line := range strings.Lines(out) {
		if !strings.HasPrefix(line, "=== ") && !strings.Contains(line, "--- PASS") {
			said = append(said, line)
		}
	}
	return strings.Join(said, "")
}

const (
	programs = "/run/.roost-guest" // where the bound folder lies inside
	hostUID  = 3_999_001_000       // far from every installation's block
	diskMB   = 512
)

// gvisor is what its sandboxes share.
type gvisor struct {
	runsc, dir string
}

func newGVisor(t *testing.T) *gvisor {
	t.Helper()
	require.Zero(t, os.Getuid(), "needs root")
	dir, err := os.MkdirTemp("/tmp", "rg") //nolint:usetesting // short: runsc's socket lies below it
	require.NoError(t, err)
	t.Cleanup(func() { require.NoError(t, os.RemoveAll(dir)) })
	require.NoError(t, os.Chmod(dir, 0o755))
	g := &gvisor{runsc: findRunsc(t), dir: dir}
	g.build(t)
	g.image(t)
	return g
}

func findRunsc(t *testing.T) string {
	t.Helper()
	for _, path := range []string{os.Getenv("ROOST_RUNSC"), filepath.Join(repository(t), "bin/runsc")} {
		if info, err := os.Stat(path); err == nil && info.Mode()&0o111 != 0 {
			return path
		}
	}
	require.Fail(t, "no runsc at $ROOST_RUNSC or bin/runsc", "make runsc builds it")
	return ""
}

func repository(t *testing.T) string {
	t.Helper()
	out, err := exec.Command("go", "list", "-m", "-f", "{{.Dir}}").Output()
	require.NoError(t, err)
	return strings.TrimSpace(string(out))
}

// build makes the test binaries and the guest.
func (g *gvisor) build(t *testing.T) {
	t.Helper()
	out := filepath.Join(g.dir, "programs")
	require.NoError(t, os.Mkdir(out, 0o755))
	root := repository(t)
	for _, args := range [][]string{
		{"test", "-c", "-o", out + "/", "./internal/guest", "./internal/guest/server", "./internal/guest/cgroup", "./internal/guest/reaper", "./internal/guest/restore", "./internal/guest/export"},
		{"build", "-trimpath", "-o", out + "/", "./cmd/roost-guest"},
	} {
		build := exec.Command("go", args...)
		build.Dir, build.Env = root, append(os.Environ(), "CGO_ENABLED=0")
		said, err := build.CombinedOutput()
		require.NoError(t, err, "%s", said)
	}
}

// tools are the programs of the tree; their libraries come along.
var tools = []string{
	"bash", "cat", "chmod", "chown", "cp", "date", "df", "echo", "head", "hostname", "id", "kill", "env", "grep", "ln", "ls", "mkdir", "mkfifo", "mv", "ps",
	"rm", "setsid", "sh", "sleep", "ssh-keygen", "stat", "stty", "tail", "touch", "tr", "true", "tty", "wc",
}

// image makes an EROFS image of the host's own programs.
func (g *gvisor) image(t *testing.T) {
	t.Helper()
	tree := filepath.Join(g.dir, "tree")
	for _, dir := range []string{"dev", "etc", "proc", "sys", "run", "tmp", "root", "home/user", "var"} {
		require.NoError(t, os.MkdirAll(filepath.Join(tree, dir), 0o755))
	}
	for _, link := range []string{"bin", "sbin", "lib", "lib64"} {
		require.NoError(t, os.MkdirAll(filepath.Join(tree, "usr", link), 0o755))
		require.NoError(t, os.Symlink("usr/"+link, filepath.Join(tree, link)))
	}
	for _, tool := range tools {
		path, err := exec.LookPath(tool)
		require.NoError(t, err, "apt-get install coreutils procps util-linux openssh-client bash hostname")
		copyTool(t, tree, path)
	}
	id, err := os.ReadFile(tree + "/usr/bin/id")
	require.NoError(t, err)
	require.NoError(t, os.WriteFile(tree+"/usr/bin/suid-id", id, 0o755))
	require.NoError(t, os.Chmod(tree+"/usr/bin/suid-id", 0o755|os.ModeSetuid))
	require.NoError(t, os.Chmod(tree+"/tmp", 0o777|os.ModeSticky))
	require.NoError(t, os.Chown(tree+"/home/user", 1000, 1000))
	for name, text := range map[string]string{
		"passwd": "root:x:0:0::/root:/bin/bash\nuser:x:1000:1000::/home/user:/bin/bash\n",
		"group":  "root:x:0:\nuser:x:1000:\nextra:x:1001:user\n",
	} {
		require.NoError(t, os.WriteFile(filepath.Join(tree, "etc", name), []byte(text), 0o644))
	}
	// As a template that was made of a sandbox has it.
	var list []byte
	for path, value := range map[string]string{"usr/bin/suid-id": capability, "usr/bin/env": rawCapability} {
		line, err := json.Marshal(map[string]any{"path": []byte(path), "name": "security.capability", "value": []byte(value)})
		require.NoError(t, err)
		list = append(list, line...)
	}
	require.NoError(t, os.WriteFile(tree+"/.roost-attributes", list, 0o600))
	out, err := exec.Command("mkfs.erofs", "-Enoinline_data,force-inode-extended", filepath.Join(g.dir, "tree.erofs"), tree).CombinedOutput()
	require.NoError(t, err, "apt-get install erofs-utils: %s", out)
}

// copyTool copies a program and what it is linked with, each under its own name in /usr.
func copyTool(t *testing.T, tree, path string) {
	t.Helper()
	linked, _ := exec.Command("ldd", path).Output() // none: a static one
	files := []string{path}
	for _, word := range strings.Fields(string(linked)) {
		if filepath.IsAbs(word) {
			files = append(files, word)
		}
	}
	for _, file := range files {
		to := filepath.Join(tree, "usr", strings.TrimPrefix(file, "/usr"))
		if _, err := os.Stat(to); err == nil {
			continue
		}
		require.NoError(t, os.MkdirAll(filepath.Dir(to), 0o755))
		info, err := os.Stat(file)
		require.NoError(t, err)
		data, err := os.ReadFile(file)
		require.NoError(t, err)
		require.NoError(t, os.WriteFile(to, data, 0o755))
		require.NoError(t, os.Chmod(to, info.Mode()))
	}
}

// sandbox is one run of gVisor.
type sandbox struct {
	t    *testing.T
	g    *gvisor
	dir  string
	spec *spec
}

func (g *gvisor) sandbox(t *testing.T, args ...string) *sandbox {
	t.Helper()
	dir, err := os.MkdirTemp(g.dir, "s") //nolint:usetesting // as above
	require.NoError(t, err)
	require.NoError(t, os.Mkdir(dir+"/root", 0o755))
	require.NoError(t, os.Chmod(dir, 0o755))
	s := &sandbox{t: t, g: g, dir: dir}
	s.spec = newSpec(g.dir, dir+"/root", args)
	t.Cleanup(func() {
		out, err := s.runsc(context.Background(), "delete", "--force", "s").CombinedOutput()
		require.NoError(t, err, "%s", out)
	})
	return s
}

func (s *sandbox) runsc(ctx context.Context, args ...string) *exec.Cmd {
	global := []string{
		"--root=" + s.dir + "/state", "--platform=systrap", "--network=none", "--ignore-cgroups", "--in-sandbox-cgroup=v2",
		"--allow-suid", "--gofer-network-namespace=new", "--directfs=true", "--overlay2=none", "--restore-spec-validation=ignore",
	}
	return exec.CommandContext(ctx, s.g.runsc, append(global, args...)...)
}

func (s *sandbox) bundle() {
	s.t.Helper()
	raw, err := json.Marshal(s.spec)
	require.NoError(s.t, err)
	require.NoError(s.t, os.WriteFile(s.dir+"/config.json", raw, 0o600))
}

// run runs to the end and returns what was said.
func (s *sandbox) run() string {
	s.t.Helper()
	s.bundle()
	cmd := s.runsc(s.t.Context(), "run", "--bundle="+s.dir, "s")
	out, err := cmd.CombinedOutput()
	require.NoError(s.t, err, "%s", failures(string(out)))
	return string(out)
}

func (s *sandbox) do(args ...string) {
	s.t.Helper()
	out, err := s.runsc(s.t.Context(), args...).CombinedOutput()
	require.NoError(s.t, err, "%s", out)
}

// start leaves it running; its console is a pipe that is read until the end.
func (s *sandbox) start(verb string, args ...string) {
	s.t.Helper()
	s.bundle()
	read, write, err := os.Pipe()
	require.NoError(s.t, err)
	cmd := s.runsc(s.t.Context(), slices.Concat([]string{verb, "--detach", "--bundle=" + s.dir}, args, []string{"s"})...)
	cmd.Stdout, cmd.Stderr = write, write
	require.NoError(s.t, cmd.Run())
	require.NoError(s.t, write.Close())
	var console bytes.Buffer
	ended := make(chan struct{})
	go func() {
		defer close(ended)
		_, _ = console.ReadFrom(read)
	}()
	s.t.Cleanup(func() {
		_ = s.runsc(context.Background(), "kill", "s", "KILL").Run()
		<-ended
		_ = read.Close()
		if s.t.Failed() {
			s.t.Log("console: ", console.String())
		}
	})
}

// exec runs this package's test binary inside, as client of the guest.
func (s *sandbox) exec(part string) string {
	s.t.Helper()
	ctx, cancel := context.WithTimeout(s.t.Context(), 2*time.Minute)
	defer cancel()
	out, err := s.runsc(ctx, "exec", "--env="+insideVariable+"="+part, "s", programs+"/guest.test").CombinedOutput()
	require.NoError(s.t, err, "%s", out)
	return string(out)
}

// spec is an OCI configuration, as far as it is used here.
type spec struct {
	Version     string            `json:"ociVersion"`
	Process     process           `json:"process"`
	Root        map[string]string `json:"root"`
	Hostname    string            `json:"hostname"`
	Mounts      []mount           `json:"mounts"`
	Linux       map[string]any    `json:"linux"`
	Annotations map[string]string `json:"annotations"`
}

type process struct {
	Args         []string            `json:"args"`
	Env          []string            `json:"env"`
	Cwd          string              `json:"cwd"`
	User         map[string]int      `json:"user"`
	Capabilities map[string][]string `json:"capabilities"`
}

type mount struct {
	Destination string   `json:"destination"`
	Type        string   `json:"type"`
	Source      string   `json:"source"`
	Options     []string `json:"options,omitempty"`
}

var capabilities = []string{
	"CAP_AUDIT_WRITE", "CAP_CHOWN", "CAP_DAC_OVERRIDE", "CAP_DAC_READ_SEARCH", "CAP_FOWNER", "CAP_FSETID", "CAP_IPC_LOCK",
	"CAP_IPC_OWNER", "CAP_KILL", "CAP_LEASE", "CAP_LINUX_IMMUTABLE", "CAP_MKNOD", "CAP_NET_ADMIN", "CAP_NET_BIND_SERVICE",
	"CAP_NET_RAW", "CAP_SETFCAP", "CAP_SETGID", "CAP_SETPCAP", "CAP_SETUID", "CAP_SYS_ADMIN", "CAP_SYS_CHROOT",
	"CAP_SYS_NICE", "CAP_SYS_PTRACE", "CAP_SYS_RESOURCE", "CAP_SYS_TTY_CONFIG",
}

func newSpec(dir, root string, args []string) *spec {
	mapping := []map[string]int{{"containerID": 0, "hostID": hostUID, "size": 1}}
	var namespaces []map[string]string
	for _, kind := range []string{"pid", "ipc", "uts", "mount", "network", "user"} {
		namespaces = append(namespaces, map[string]string{"type": kind})
	}
	caps := map[string][]string{}
	for _, set := range []string{"bounding", "effective", "permitted", "inheritable"} {
		caps[set] = slices.Clone(capabilities)
	}
	return &spec{
		Version: "1.0.0",
		Process: process{
			Args: args, Env: []string{"PATH=/usr/local/bin:/usr/bin:/bin:/usr/sbin:/sbin", "HOME=/root"}, Cwd: "/",
			User: map[string]int{"uid": 0, "gid": 0}, Capabilities: caps,
		},
		Root: map[string]string{"path": root}, Hostname: "gvisor",
		Mounts: []mount{
			{"/proc", "proc", "proc", nil}, {"/dev", "tmpfs", "tmpfs", nil}, {"/sys", "sysfs", "sysfs", nil},
			{"/sys/fs/cgroup", "cgroup", "cgroup", nil}, {"/run", "tmpfs", "tmpfs", []string{"mode=0755"}}, {"/dev/shm", "tmpfs", "shm", nil},
			{"/dev/pts", "devpts", "devpts", nil}, {programs, "bind", dir + "/programs", []string{"ro", "bind"}},
		},
		Linux: map[string]any{"namespaces": namespaces, "uidMappings": mapping, "gidMappings": mapping},
		Annotations: map[string]string{
			"dev.gvisor.spec.rootfs.source": dir + "/tree.erofs", "dev.gvisor.spec.rootfs.type": "erofs",
			"dev.gvisor.spec.rootfs.overlay": "self", "dev.gvisor.spec.rootfs.options": "size=536870912",
		},
	}
}
