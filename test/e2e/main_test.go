// Package e2e drives the real roost binary: real QEMU guests from the real base template,
// through the real command line. The whole package runs in a network namespace of its own, so
// that no rule, link or forwarding switch of the machine is touched, next to an "internet"
// that it builds from documentation addresses.
package e2e

import (
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"runtime"
	"syscall"
	"testing"
)

// Environment of the run, set by test/all; the defaults serve `go test ./test/e2e`.
const (
	insideVariable = "ROOST_E2E_INSIDE"
	binVariable    = "ROOST_E2E_BIN"
	dataVariable   = "ROOST_E2E_DATA"
	runscVariable  = "ROOST_RUNSC"
	// imagesVariable is a folder with the base template, to be copied: there is no Go, no apt and no
	// gVisor here, since this is the in-VM lane.
	imagesVariable = "ROOST_E2E_IMAGES"
)

// roostBin is the binary under test (built with failpoints); templates is a data directory
// that holds the base template.
var roostBin, templates string

func TestMain(m *testing.M) {
	if os.Geteuid() != 0 {
		fmt.Println("e2e: run as root: sandboxes need namespaces, taps and uids")
		os.Exit(1)
	}
	if os.Getenv(insideVariable) == "" {
		os.Exit(prepare())
	}
	roostBin, templates = os.Getenv(binVariable), os.Getenv(dataVariable)
	if err := makeWorld(); err != nil {
		fmt.Println("e2e: make the test's internet:", err)
		os.Exit(1)
	}
	status := m.Run()
	if err := unmakeWorld(); err != nil {
		fmt.Println("e2e: remove the test's internet:", err)
		status = 1
	}
	os.Exit(status)
}

// prepare builds what is missing with the machine's network, then runs the tests again in a
// namespace of their own.
func prepare() int {
	root, err := filepath.Abs("../..")
	if err != nil {
		fmt.Println(err)
		return 1
	}
	if from := os.Getenv(imagesVariable); from != "" {
		return inLane(from)
	}
	bin, dir, err := buildRoost(root)
	if err != nil {
		fmt.Println("e2e: build roost:", err)
		return 1
	}
	if dir != "" {
		defer os.RemoveAll(dir)
	}
	data := os.Getenv(dataVariable)
	if data == "" {
		data = filepath.Join(root, ".cache", "test")
	}
	build := exec.Command(bin, "template", "build", "base", "--data", data, "--download-cache", filepath.Join(root, ".cache", "downloads"))
	build.Stdout, build.Stderr = os.Stdout, os.Stderr
	if err := build.Run(); err != nil {
		fmt.Println("e2e: build the base template:", err)
		return 1
	}
	runsc, err := buildRunsc(root)
	if err != nil {
		fmt.Println("e2e: build runsc:", err)
		return 1
	}
	return again(runscVariable+"="+runsc, binVariable+"="+bin, dataVariable+"="+data)
}

// inLane takes the base template from a folder that cannot be written.
func inLane(from string) int {
	data, err := os.MkdirTemp("", "roost-e2e-data-")
	if err == nil {
		defer os.RemoveAll(data)
		err = os.CopyFS(filepath.Join(data, "images"), os.DirFS(from))
	}
	if err != nil {
		fmt.Println("e2e: copy the base template:", err)
		return 1
	}
	return again(dataVariable + "=" + data)
}

// again runs the tests in a network namespace of their own.
func again(env ...string) int {
	cmd := exec.Command(os.Args[0], os.Args[1:]...)
	cmd.Env = append(append(os.Environ(), insideVariable+"=1"), env...)
	cmd.Stdin, cmd.Stdout, cmd.Stderr = os.Stdin, os.Stdout, os.Stderr
	cmd.SysProcAttr = &syscall.SysProcAttr{Cloneflags: syscall.CLONE_NEWNET}
	runtime.LockOSThread()
	if err := cmd.Run(); err != nil {
		if cmd.ProcessState != nil {
			return max(cmd.ProcessState.ExitCode(), 1)
		}
		fmt.Println("e2e: run the tests:", err)
		return 1
	}
	return 0
}

// buildRoost builds a roost with failpoints, unless the run brought one.
func buildRoost(root string) (bin, dir string, err error) {
	if bin := os.Getenv(binVariable); bin != "" {
		return bin, "", nil
	}
	if dir, err = os.MkdirTemp("", "roost-e2e-bin-"); err != nil {
		return "", "", err
	}
	bin = filepath.Join(dir, "roost")
	cmd := exec.Command("make", "--no-print-directory", "-C", root, "build-failpoints", "OUT="+bin)
	cmd.Stdout, cmd.Stderr = os.Stdout, os.Stderr
	return bin, dir, cmd.Run()
}

// buildRunsc builds gVisor, unless the run brought one. The roost under test does not lie beside
// it.
func buildRunsc(root string) (string, error) {
	if path := os.Getenv(runscVariable); path != "" {
		return path, nil
	}
	cmd := exec.Command("make", "--no-print-directory", "-C", root, "runsc")
	cmd.Stdout, cmd.Stderr = os.Stdout, os.Stderr
	return filepath.Join(root, "bin", "runsc"), cmd.Run()
}
