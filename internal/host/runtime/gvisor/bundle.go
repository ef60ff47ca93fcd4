package gvisor

import (
	"encoding/json"
	"fmt"
	"os"
	"path/filepath"
	"strconv"

	specs "github.com/opencontainers/runtime-spec/specs-go"

	"github.com/roosthq/roost/internal/fault"
	"github.com/roosthq/roost/internal/host/runtime"
)

const (
	bundleDir = "bundle"
	// guestMount is where the guest agent's directory lies in a sandbox: in /run, a tmpfs, so
	// that nothing of it is in the user's file tree.
	guestMount = "/run/.roost-guest"
	// maxFiles bounds a process's open files inside.
	maxFiles = 1 << 20
	// cpuPeriod in µs.
	cpuPeriod = 100_000
)

// rootfs annotations of runsc: the root is an EROFS image under an overlay whose content goes to
// a file in root.path.
const (
	rootSource  = "dev.gvisor.spec.rootfs.source"
	rootType    = "dev.gvisor.spec.rootfs.type"
	rootOverlay = "dev.gvisor.spec.rootfs.overlay"
	rootOptions = "dev.gvisor.spec.rootfs.options"
)

// capabilities are all that a root in a VM has and that mean something in the sentry; each is
// over the sentry's own objects, none over the host's. Those that are missing (SYS_MODULE,
// SYS_RAWIO, SYS_BOOT, SYS_TIME, MAC_*, SYSLOG, WAKE_ALARM, BLOCK_SUSPEND) have nothing to act on.
var capabilities = []string{
	"CAP_AUDIT_WRITE", "CAP_CHOWN", "CAP_DAC_OVERRIDE", "CAP_DAC_READ_SEARCH", "CAP_FOWNER",
	"CAP_FSETID", "CAP_IPC_LOCK", "CAP_IPC_OWNER", "CAP_KILL", "CAP_LEASE", "CAP_LINUX_IMMUTABLE",
	"CAP_MKNOD", "CAP_NET_ADMIN", "CAP_NET_BIND_SERVICE", "CAP_NET_BROADCAST", "CAP_NET_RAW",
	"CAP_SETFCAP", "CAP_SETGID", "CAP_SETPCAP", "CAP_SETUID", "CAP_SYS_ADMIN", "CAP_SYS_CHROOT",
	"CAP_SYS_NICE", "CAP_SYS_PACCT", "CAP_SYS_PTRACE", "CAP_SYS_RESOURCE", "CAP_SYS_TTY_CONFIG",
}

// bundle is what a sandbox's configuration is made of.
type bundle struct {
	args, env []string
	hostname  string
	root      string // absolute; the file store is made in it
	tree      string // EROFS image; "" takes root itself
	diskMB    int
	programs  string // bound read-only at guestMount
	namespace string // network namespace; "" is none
	uid       int
	leaf      string // cgroup; "" is none
	resources *specs.LinuxResources
}

// write puts the configuration into dir.
func (b bundle) write(dir string) error {
	raw, err := json.Marshal(b.spec())
	if err != nil {
		return err
	}
	if err := os.MkdirAll(dir, 0o700); err != nil {
		return fault.Wrap(err, "make", "bundle")
	}
	// It holds the guest's first token.
	return fault.Wrap(os.WriteFile(filepath.Join(dir, "config.json"), raw, 0o600), "write", "bundle")
}

func (b bundle) spec() specs.Spec {
	ids := []specs.LinuxIDMapping{{ContainerID: 0, HostID: uint32(b.uid), Size: 1}}
	return specs.Spec{
		Version:  specs.Version,
		Hostname: b.hostname,
		Process: &specs.Process{
			Args: b.args, Env: b.env, Cwd: "/",
			Capabilities: &specs.LinuxCapabilities{
				Bounding: capabilities, Effective: capabilities, Permitted: capabilities, Inheritable: capabilities,
			},
			Rlimits: []specs.POSIXRlimit{{Type: "RLIMIT_NOFILE", Hard: maxFiles, Soft: 1024}},
		},
		Root:        &specs.Root{Path: b.root},
		Mounts:      b.mounts(),
		Annotations: b.annotations(),
		Linux: &specs.Linux{
			Namespaces:  b.namespaces(),
			UIDMappings: ids, GIDMappings: ids,
			CgroupsPath: b.leaf, Resources: b.resources,
		},
	}
}

func (b bundle) annotations() map[string]string {
	if b.tree == "" {
		return nil
	}
	return map[string]string{
		rootSource: b.tree, rootType: "erofs", rootOverlay: "self",
		rootOptions: "size=" + strconv.FormatInt(int64(b.diskMB)<<20, 10),
	}
}

// mounts of a sandbox. Over an empty /tmp that no mount names runsc puts a tmpfs; a mount of a type
// that it does not know is named and skipped, and so /tmp is the disk's, as in a VM.
func (b bundle) mounts() []specs.Mount {
	return []specs.Mount{
		{Destination: "/tmp", Type: "disk", Source: "none"},
		{Destination: "/proc", Type: "proc", Source: "proc"},
		{Destination: "/dev", Type: "tmpfs", Source: "tmpfs"},
		{Destination: "/dev/pts", Type: "devpts", Source: "devpts"},
		{Destination: "/dev/shm", Type: "tmpfs", Source: "shm", Options: []string{"mode=1777"}},
		{Destination: "/sys", Type: "sysfs", Source: "sysfs"},
		{Destination: "/sys/fs/cgroup", Type: "cgroup", Source: "cgroup"},
		{Destination: "/run", Type: "tmpfs", Source: "tmpfs", Options: []string{"mode=0755"}},
		{Destination: guestMount, Type: "bind", Source: b.programs, Options: []string{"bind", "ro"}},
	}
}

func (b bundle) namespaces() []specs.LinuxNamespace {
	out := []specs.LinuxNamespace{
		{Type: specs.UserNamespace}, {Type: specs.PIDNamespace}, {Type: specs.IPCNamespace},
		{Type: specs.UTSNamespace}, {Type: specs.MountNamespace},
	}
	return append(out, specs.LinuxNamespace{Type: specs.NetworkNamespace, Path: b.namespace})
}

// bundleOf is the configuration of a sandbox that starts the guest agent. A restored one keeps
// the processes that it had; only its resources, mounts and namespaces are the configuration's.
func (r *Runtime) bundleOf(spec runtime.Spec, rec instanceRecord) bundle {
	g := spec.Guest
	b := bundle{
		args: guestArgs(g), hostname: g.Hostname,
		env: []string{
			"PATH=/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin",
			"ROOST_CONTROL_TOKEN=" + g.Token,
		},
		root: rec.Live, tree: rec.Tree, diskMB: rec.DiskMB,
		programs: r.builds.guestDir(rec.Guest), namespace: spec.Port.Namespace,
		uid: spec.UID,
	}
	if b.hostname == "" {
		b.hostname = "roost"
	}
	if rec.Leaf != "" {
		b.leaf = r.cgroups.path(rec.Leaf)
		b.resources = r.cgroups.resources(rec.VCPUs, rec.MemoryMB)
	}
	return b
}

// guestArgs start the guest agent as the sandbox's first process.
func guestArgs(g runtime.Guest) []string {
	args := []string{guestMount + "/" + guestName, "--no-init", "--root", "/", "--cgroup-root", "/sys/fs/cgroup"}
	for _, flag := range []struct{ name, value string }{
		{"default-user", g.DefaultUser}, {"hostname", g.Hostname}, {"dns", g.DNS},
	} {
		if flag.value != "" {
			args = append(args, fmt.Sprintf("--%s=%s", flag.name, flag.value))
		}
	}
	return args
}

// liveDir is where a start's file store lies.
func liveDir(spec runtime.Spec) string {
	return filepath.Join(spec.DiskDir, "live-"+strconv.Itoa(spec.DiskIndex))
}

// leafOf names a sandbox's cgroup: by uid too, since several templates may start at once.
func leafOf(spec runtime.Spec) string {
	if spec.UID == 0 {
		return ""
	}
	return spec.ID + "-" + strconv.Itoa(spec.UID)
}
