package doctor

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"strings"

	"golang.org/x/sys/unix"
)

// kvmGetAPIVersion is the one request that every KVM answers alike, with 12.
const (
	kvmGetAPIVersion = 0xae00
	kvmAPI           = 12
)

// kvm says why there is none, and how this machine gets one. One that answers may still be unable
// to run a guest: that is for a runtime to try.
func (s System) kvm(context.Context) Finding {
	f, err := os.OpenFile("/dev/kvm", os.O_RDWR, 0)
	if err != nil {
		detail, hint := s.whyNoKVM(err)
		return warn("kvm", detail, hint)
	}
	defer f.Close()
	version, err := unix.IoctlRetInt(int(f.Fd()), kvmGetAPIVersion)
	if err != nil || version != kvmAPI {
		return warn("kvm", fmt.Sprintf("/dev/kvm opens, but its version is %d (%v)", version, err), "use a stock Linux kernel with KVM")
	}
	st, err := f.Stat()
	if err != nil {
		return warn("kvm", err.Error(), kvmMode)
	}
	if st.Mode().Perm()&0o060 != 0o060 && st.Mode().Perm()&0o006 != 0o006 {
		return warn("kvm", fmt.Sprintf("/dev/kvm has mode %o: QEMU's VMs run under uids of their own and cannot open it", st.Mode().Perm()), kvmMode)
	}
	return ok("kvm", "/dev/kvm answers; whether it runs a guest is tried by the runtimes")
}

const kvmMode = "chgrp kvm /dev/kvm && chmod 660 /dev/kvm; Debian's udev does it at boot"

// whyNoKVM tells a CPU that has it from one that has not, or is not shown to have it.
func (s System) whyNoKVM(err error) (detail, hint string) {
	module := map[bool]string{true: "kvm_amd", false: "kvm_intel"}
	has, amd := s.virtualization()
	switch {
	case !errors.Is(err, fs.ErrNotExist) && !errors.Is(err, unix.ENODEV) && !errors.Is(err, unix.ENXIO):
		return "/dev/kvm does not open: " + err.Error(), "run roost as root, outside of containers that hide devices"
	case has:
		m := module[amd]
		return "no /dev/kvm, though the CPU has virtualization: the module is not loaded", "modprobe " + m +
			"; if it says `Operation not supported`, switch virtualization on in the firmware; echo " + m + " >/etc/modules-load.d/kvm.conf keeps it"
	}
	where, how := s.cloud()
	return "no /dev/kvm: the CPU shows no virtualization" + where + "; sandboxes run in gVisor", how
}

// virtualization looks for VT-x or AMD-V among the CPU's flags.
func (s System) virtualization() (has, amd bool) {
	info, _ := s.read("proc/cpuinfo") // without it, the CPU shows none
	for line := range strings.Lines(info) {
		if flags, is := strings.CutPrefix(line, "flags"); is {
			words := strings.Fields(flags)
			for _, w := range words {
				has, amd = has || w == "vmx" || w == "svm", amd || w == "svm"
			}
			break
		}
	}
	return has, amd
}

// maker is a machine's maker by its DMI, and how its machines get virtualization.
type maker struct{ vendor, product, name, how string }

var makers = []maker{
	{"Amazon EC2", "", "Amazon EC2", "use a .metal instance type, or one with nested virtualization (C8i, M8i, R8i) started with --cpu-options NestedVirtualization=enabled"},
	{"Google", "", "Google Compute Engine", "stop the instance and set advancedMachineFeatures.enableNestedVirtualization (gcloud compute instances create --enable-nested-virtualization --min-cpu-platform 'Intel Haswell'); not on E2, AMD or Arm types"},
	{"Microsoft Corporation", "Virtual Machine", "Azure or Hyper-V", "Azure: a size that nests, Dv3 or Ev3 and newer, security type Standard; Hyper-V: Set-VMProcessor -VMName NAME -ExposeVirtualizationExtensions $true"},
	{"DigitalOcean", "", "DigitalOcean", "no size that is certain to nest: rent a dedicated server"},
	{"Hetzner", "", "Hetzner Cloud", "cloud servers do not nest: rent a dedicated server"},
	{"OpenStack Foundation", "", "OpenStack (OVH and others)", "ask for a flavour that nests, or rent a dedicated server"},
	{"VMware, Inc.", "", "VMware", "shut the VM down and switch on `Expose hardware assisted virtualization to the guest OS` (vhv.enable = TRUE)"},
	{"innotek GmbH", "VirtualBox", "VirtualBox", "VBoxManage modifyvm NAME --nested-hw-virt on"},
	{"Xen", "", "Xen", "Xen does not nest here: use another host"},
	{"QEMU", "", "Proxmox, libvirt or QEMU", "on the machine beneath: modprobe kvm_intel nested=1 (or kvm_amd), then CPU type host (Proxmox: qm set ID --cpu host)"},
}

// cloud says where the machine is, if that can be seen, and how it gets virtualization there.
func (s System) cloud() (where, how string) {
	vendor, _ := s.read("sys/class/dmi/id/sys_vendor")
	product, _ := s.read("sys/class/dmi/id/product_name")
	for _, m := range makers {
		if vendor != "" && strings.HasPrefix(vendor, m.vendor) && strings.HasPrefix(product, m.product) {
			return " to this machine (" + m.name + ")", m.how
		}
	}
	return "", "switch virtualization on in the firmware; in a VM, let its host show it (nested virtualization)"
}
