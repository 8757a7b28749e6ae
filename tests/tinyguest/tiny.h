#ifndef TINY_H
#define TINY_H
typedef unsigned char u8; typedef unsigned short u16; typedef unsigned int u32; typedef unsigned long u64;
void ioapic_route(u32 gsi, u8 vector);
int vsock_init(u64 base, u32 gsi);
void vsock_poll(void);
int vserial_init(u64 base, u32 gsi);
void vserial_poll(void);
void vserial_send(const u8 *bytes, u32 n);
void vserial_byte(char ch);      /* a byte for the command line, when vserial_commands is set */
extern u8 vserial_commands;
extern u64 vserial_echoed;
extern u64 vsock_resets, vsock_echoed;
#endif
