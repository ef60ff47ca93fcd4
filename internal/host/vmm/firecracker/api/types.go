package api

// MachineConfig is PUT /machine-config.
type MachineConfig struct {
	VCPUs           int    `json:"vcpu_count"`
	MemoryMB        int    `json:"mem_size_mib"`
	SMT             bool   `json:"smt"`
	CPUTemplate     string `json:"cpu_template,omitempty"`
	TrackDirtyPages bool   `json:"track_dirty_pages"`
}

// BootSource is PUT /boot-source.
type BootSource struct {
	Kernel string `json:"kernel_image_path"`
	Initrd string `json:"initrd_path,omitempty"`
	Args   string `json:"boot_args"`
}

// Values of Drive.
const (
	// CacheWriteback passes a guest's flushes on; without it they do nothing.
	CacheWriteback = "Writeback"
	EngineSync     = "Sync"
)

// Drive is PUT /drives/{id}.
type Drive struct {
	ID          string       `json:"drive_id"`
	Path        string       `json:"path_on_host"`
	Root        bool         `json:"is_root_device"`
	ReadOnly    bool         `json:"is_read_only"`
	Cache       string       `json:"cache_type"`
	Engine      string       `json:"io_engine"`
	RateLimiter *RateLimiter `json:"rate_limiter,omitempty"`
}

// DrivePatch is PATCH /drives/{id}: with a path the file is opened again, and its size read.
type DrivePatch struct {
	ID   string `json:"drive_id"`
	Path string `json:"path_on_host,omitempty"`
	// RateLimiter replaces the one that is there; a bucket of zeros takes it away.
	RateLimiter *RateLimiter `json:"rate_limiter,omitempty"`
}

// NetworkInterface is PUT /network-interfaces/{id}.
type NetworkInterface struct {
	ID            string       `json:"iface_id"`
	Tap           string       `json:"host_dev_name"`
	MAC           string       `json:"guest_mac,omitempty"`
	RxRateLimiter *RateLimiter `json:"rx_rate_limiter,omitempty"`
	TxRateLimiter *RateLimiter `json:"tx_rate_limiter,omitempty"`
}

// NetworkInterfacePatch is PATCH /network-interfaces/{id}.
type NetworkInterfacePatch struct {
	ID            string       `json:"iface_id"`
	RxRateLimiter *RateLimiter `json:"rx_rate_limiter,omitempty"`
	TxRateLimiter *RateLimiter `json:"tx_rate_limiter,omitempty"`
}

// RateLimiter bounds bytes and operations; nil is no bound.
type RateLimiter struct {
	Bandwidth *TokenBucket `json:"bandwidth,omitempty"`
	Ops       *TokenBucket `json:"ops,omitempty"`
}

// TokenBucket refills to Size in RefillMS milliseconds; Burst is there once, at the start.
type TokenBucket struct {
	Size     int64 `json:"size"`
	RefillMS int64 `json:"refill_time"`
	Burst    int64 `json:"one_time_burst,omitempty"`
}

// Entropy is PUT /entropy.
type Entropy struct {
	RateLimiter *RateLimiter `json:"rate_limiter,omitempty"`
}

// Action is PUT /actions.
type Action struct {
	Type string `json:"action_type"`
}

// InstanceStart boots the VM.
const InstanceStart = "InstanceStart"

// States of PATCH /vm.
const (
	StatePaused  = "Paused"
	StateResumed = "Resumed"
)

// VMState is PATCH /vm.
type VMState struct {
	State string `json:"state"`
}

// Kinds of a snapshot. A Diff has the pages written since the one before, and is merged into a
// memory file that has the VM's size already.
const (
	SnapshotFull = "Full"
	SnapshotDiff = "Diff"
)

// SnapshotCreate is PUT /snapshot/create.
type SnapshotCreate struct {
	Type   string `json:"snapshot_type"`
	State  string `json:"snapshot_path"`
	Memory string `json:"mem_file_path"`
}

// Kinds of a MemoryBackend.
const (
	// MemoryFile is mapped privately.
	MemoryFile = "File"
	// MemoryUffd is a socket of who answers page faults.
	MemoryUffd = "Uffd"
)

// MemoryBackend is where a restored VM's memory comes from.
type MemoryBackend struct {
	Type string `json:"backend_type"`
	Path string `json:"backend_path"`
}

// NetworkOverride gives a restored interface another tap.
type NetworkOverride struct {
	ID  string `json:"iface_id"`
	Tap string `json:"host_dev_name"`
}

// SnapshotLoad is PUT /snapshot/load.
type SnapshotLoad struct {
	State            string            `json:"snapshot_path"`
	Memory           MemoryBackend     `json:"mem_backend"`
	TrackDirtyPages  bool              `json:"track_dirty_pages"`
	ResumeVM         bool              `json:"resume_vm"`
	NetworkOverrides []NetworkOverride `json:"network_overrides,omitempty"`
}

// States of Instance.
const (
	NotStarted = "Not started"
	Running    = "Running"
	Paused     = "Paused"
)

// Instance answers GET /.
type Instance struct {
	ID      string `json:"id"`
	State   string `json:"state"`
	Version string `json:"vmm_version"`
	App     string `json:"app_name"`
}

// Version answers GET /version.
type Version struct {
	Version string `json:"firecracker_version"`
}

// Fault is the body of a refusal.
type Fault struct {
	Message string `json:"fault_message"`
}
