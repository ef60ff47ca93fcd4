package firecracker

import (
	"crypto/sha256"
	"encoding/hex"
	"os"
	"regexp"
)

var cpuFeatures = regexp.MustCompile(`(?m)^(vendor_id|cpu family|model|model name|stepping|flags)\s*:.*$`)

// cpuOf names what guests see: a hash of the host's CPU, and the template over it.
func cpuOf(template string) string {
	if template == "" {
		template = "none"
	}
	raw, err := os.ReadFile("/proc/cpuinfo")
	if err != nil {
		return template + ":unknown"
	}
	h := sha256.New()
	seen := map[string]bool{}
	for _, line := range cpuFeatures.FindAll(raw, -1) {
		if !seen[string(line)] {
			seen[string(line)] = true
			_, _ = h.Write(append(line, '\n'))
		}
	}
	return template + ":" + hex.EncodeToString(h.Sum(nil)[:8])
}
