package vm

import (
	"fmt"
	"os"
	"time"
)

// Config is one run of one program in a VM of its own.
type Config struct {
	Shape string
	// Program runs with Args, in Dir (the same path outside and in the VM; its files are there).
	Program string
	Args    []string
	Env     []string
	Dir     string
	// Files are single files of the host, Trees folders (as read-only drives), Drives read-only
	// images of ext4 or EROFS; each with its place in the VM.
	Files, Trees, Drives []Place
	// Tools are programs of the host beside those of the shape, with their libraries.
	Tools []string
	// ScratchMB is the size of the file system on /tmp; it costs what is written. 0: 6 GB.
	ScratchMB int
	// MemoryMB and CPUs replace those of the shape.
	MemoryMB, CPUs int
	// Limit ends a VM that does not end; 0 is none.
	Limit time.Duration
	// Signals are passed on to the program.
	Signals <-chan os.Signal
	// KeepLeft lets the program leave devices, mounts and processes behind; else that fails.
	KeepLeft bool
	// Verbose tells what the VM does, on standard error.
	Verbose bool
}

// Place is a thing of the host and where it goes in the VM.
type Place struct{ Host, Guest string }

// Shape is a kind of machine.
type Shape struct {
	MemoryMB, CPUs int
	// CPU is QEMU's model.
	CPU string
	// Modules are loaded with what they depend on; parameters by name.
	Modules []string
	Tools   []string
	// Files and Folders of the host that the tools read, at the same path in the VM.
	Files, Folders []string
}

const defaultScratchMB = 6 << 10

var parameters = map[string]string{
	"loop":    "max_loop=0",
	"dummy":   "numdummies=0",
	"kvm_amd": "nested=0", // one level below ours is enough
}

var (
	coreModules = []string{"virtio_pci", "virtio_blk", "virtio_console"}
	diskModules = []string{"dm-mod", "dm-snapshot", "dm-zero", "dm-flakey", "dm-delay", "loop", "erofs", "overlay"}
	// There is no modprobe inside, so what nftables would ask for is there before.
	networkModules = []string{
		"tun", "veth", "dummy", "bridge", "af_packet", "nf_tables", "nft_chain_nat", "nft_nat", "nft_masq", "nft_ct",
		"nft_connlimit", "nft_fib_inet", "nft_reject_inet", "nft_limit", "nft_log", "nf_conntrack_netlink",
	}
	diskTools = []string{"mke2fs", "e2fsck", "resize2fs", "debugfs", "dumpe2fs", "tune2fs", "fio"}
	hostTools = []string{"qemu-system-x86_64", "qemu-img", "nft", "ip", "mkfs.erofs"}
)

var shapes = map[string]Shape{
	"disk": {
		MemoryMB: 1024, CPUs: 1, CPU: "max,la57=off,svm=off",
		Modules: join(coreModules, diskModules), Tools: diskTools,
		Files: []string{"/etc/mke2fs.conf"},
	},
	"host": {
		MemoryMB: 3072, CPUs: 2, CPU: "max,la57=off",
		Modules: join(coreModules, diskModules, networkModules, []string{"kvm", "kvm-amd"}),
		Tools:   join(diskTools, hostTools),
		Files: []string{
			"/etc/mke2fs.conf", "/usr/share/qemu/bios-microvm.bin", "/usr/share/qemu/kvmvapic.bin", "/usr/share/qemu/linuxboot.bin",
			"/usr/share/qemu/linuxboot_dma.bin", "/usr/share/qemu/pvh.bin", "/usr/share/qemu/qboot.rom",
			"/usr/share/seabios/bios-256k.bin", "/usr/share/seabios/bios-microvm.bin",
			"/usr/lib/x86_64-linux-gnu/qemu/accel-tcg-x86_64.so",
		},
	},
}

func join(lists ...[]string) []string {
	var out []string
	for _, l := range lists {
		out = append(out, l...)
	}
	return out
}

// shape is the shape that the configuration names, with its own sizes.
func (c Config) shape() (Shape, error) {
	s, ok := shapes[c.Shape]
	if !ok {
		return Shape{}, fmt.Errorf("no shape %q: there are disk and host", c.Shape)
	}
	if c.MemoryMB > 0 {
		s.MemoryMB = c.MemoryMB
	}
	if c.CPUs > 0 {
		s.CPUs = c.CPUs
	}
	return s, nil
}
