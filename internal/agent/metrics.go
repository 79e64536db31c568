package agent

import (
	"time"

	"github.com/prometheus/client_golang/prometheus"
)

// metrics of an agent, for Prometheus.
type metrics struct {
	a        *Agent
	steps    *prometheus.HistogramVec
	failures prometheus.Counter
	networks prometheus.Counter
}

func newMetrics(a *Agent) *metrics {
	return &metrics{
		a: a,
		steps: prometheus.NewHistogramVec(prometheus.HistogramOpts{
			Name: "croft_step_seconds", Help: "Time that steps of servers' lives take on the host.",
			Buckets: prometheus.ExponentialBuckets(0.001, 2, 14),
		}, []string{"step", "outcome"}),
		failures: prometheus.NewCounter(prometheus.CounterOpts{
			Name: "croft_start_failures_total", Help: "Starts of servers that failed.",
		}),
		networks: prometheus.NewCounter(prometheus.CounterOpts{
			Name: "croft_network_set_failures_total", Help: "Times that a network could not be made as it is wanted.",
		}),
	}
}

func (m *metrics) step(s step, took time.Duration, err error) {
	outcome := "done"
	if err != nil {
		outcome = "failed"
	}
	m.steps.WithLabelValues(s.String(), outcome).Observe(took.Seconds())
}

func (m *metrics) failure(string) { m.failures.Inc() }

var phasesDesc = prometheus.NewDesc("croft_servers", "Servers on this host, by phase.", []string{"phase"}, nil)

// Describe and Collect make the agent a prometheus.Collector.
func (a *Agent) Describe(ch chan<- *prometheus.Desc) {
	a.metrics.steps.Describe(ch)
	a.metrics.failures.Describe(ch)
	a.metrics.networks.Describe(ch)
	ch <- phasesDesc
}

func (a *Agent) Collect(ch chan<- prometheus.Metric) {
	a.metrics.steps.Collect(ch)
	a.metrics.failures.Collect(ch)
	a.metrics.networks.Collect(ch)
	counts := map[string]int{}
	a.status.mu.Lock()
	for _, st := range a.status.last {
		counts[string(st.Phase)]++
	}
	a.status.mu.Unlock()
	for phase, n := range counts {
		ch <- prometheus.MustNewConstMetric(phasesDesc, prometheus.GaugeValue, float64(n), phase)
	}
}
